"""Who imports whom, where transactions end, how long functions are: the plan of the house, kept by a machine."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mfa_service"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
FREE = {"cli", "doctor", "extension", "mount", "app", "__init__"}

#: What a layer may import of ours, and which libraries it must not know.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "server": set(),
    "crypto": {"crypto", "errors"},
    "models": set(),
    "services": {"services", "models", "crypto", "config", "errors"},
    "answers": {"errors"},
    "jwks": {"errors"},
    "live": {"crypto.tokens", "errors"},
    "guard": {"answers", "crypto.signing", "crypto.tokens", "errors", "jwks"},
    "web": {"web", "answers", "services", "config", "errors"},
    "auth": {"auth", "web", "answers", "services", "guard", "errors"},
    "api": {"api", "web", "services", "guard", "errors"},
}
MUST_NOT_KNOW = {
    "errors": {"flask", "sqlalchemy"},
    "config": {"flask", "sqlalchemy"},
    "server": {"flask", "sqlalchemy"},
    "crypto": {"flask", "sqlalchemy"},
    "models": {"flask"},
    "services": {"flask", "werkzeug"},
    "answers": {"sqlalchemy"},
    "jwks": {"flask", "sqlalchemy"},
    "live": {"sqlalchemy"},
    "guard": {"sqlalchemy"},
    "web": {"sqlalchemy", "jwt", "pyotp", "bcrypt"},
    "auth": {"sqlalchemy", "jwt", "pyotp", "bcrypt"},
    "api": {"sqlalchemy", "jwt", "pyotp", "bcrypt"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_in_one_direction(path: Path) -> None:
    layer = _layer(path)
    if layer in FREE:
        return
    for module in _imports(path):
        head, _, rest = module.partition(".")
        if head == "mfa_service":
            assert any(rest == name or rest.startswith(f"{name}.") for name in MAY_IMPORT[layer]), module
        assert head not in MUST_NOT_KNOW[layer], module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_what_stands_on_top(path: Path) -> None:
    tops = {"mfa_service.app", "mfa_service.extension", "mfa_service.mount", "mfa_service.cli", "mfa_service.doctor"}
    assert _layer(path) in FREE or not tops & set(_imports(path))


def test_conductors_do_not_call_each_other_and_only_login_calls_them() -> None:
    conductors = {"accounts", "login"}
    for path in (PACKAGE / "services").glob("*.py"):
        called = {name.rpartition(".")[2] for name in _imports(path)} & conductors
        allowed = conductors if path.stem in ("login", "__init__") else set()
        assert called <= allowed, path.name


def test_a_route_asks_services_and_not_what_they_are_made_of() -> None:
    reaching = re.compile(r"services\(\)\.\w+\.\w+\.")
    found = [path for path in FILES if _layer(path) in ("api", "auth") and reaching.search(path.read_text())]
    assert not found


def test_transactions_end_in_one_place() -> None:
    for path in FILES:
        calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)]
        ends = [call for call in calls if call.attr in ("commit", "rollback")]
        assert not ends or path.name == "unit_of_work.py", path


def test_time_comes_from_the_clock() -> None:
    allowed = {"app.py", "extension.py", "guard.py", "limits.py", "doctor.py"}
    for path in FILES:
        readings = [f"{ast.unparse(node.func)}" for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
        is_reading = {"time.time", "datetime.now", "datetime.utcnow"} & set(readings)
        assert not is_reading or path.name in allowed or _layer(path) == "cli", path


def test_cryptography_stands_in_one_folder() -> None:
    libraries = {"bcrypt", "cryptography", "hashlib", "hmac", "jwt", "pyotp", "random", "secrets", "ssl"}
    used = {_where(path): libraries & {module.partition(".")[0] for module in _imports(path)} for path in FILES}
    elsewhere = {where: found for where, found in used.items() if found and not where.startswith("crypto/")}
    # Published keys are read, and a request is given an id.
    assert elsewhere == {"jwks.py": {"jwt"}, "web/client.py": {"secrets"}}
    assert not any("random" in found for found in used.values()), "it can be guessed"


def test_the_guard_needs_no_database() -> None:
    # Forbidden, not only absent: PyJWT's own dependency loads bcrypt where it happens to be installed.
    forbidden = "sqlalchemy", "pyotp", "bcrypt", "pydantic", "flask_limiter"
    script = f"import sys; sys.modules.update(dict.fromkeys({forbidden})); import mfa_service.guard"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_functions_are_short_and_typed() -> None:
    functions = [node for path in FILES for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef)]
    lengths = {f"{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert statistics.median(lengths.values()) <= 9
    assert max(lengths.values()) <= 45, max(lengths, key=lengths.__getitem__)
    assert all(node.returns is not None for node in functions)


def test_the_whole_fits_in_one_head() -> None:
    assert sum(_lines_of_code(path) for path in FILES) <= 8000


def test_names_say_what_things_are() -> None:
    theirs = {"process_bind_param", "process_result_value"}  # SQLAlchemy's names
    words = ("handle_", "process_", "do_", "util", "helper", "manager")
    for path in FILES:
        names = [
            path.stem,
            *(node.name for node in ast.walk(_tree(path)) if isinstance(node, ast.FunctionDef | ast.ClassDef)),
        ]
        assert not [name for name in names if name not in theirs and name.lower().lstrip("_").startswith(words)], path


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def _lines_of_code(path: Path) -> int:
    """Lines that say what is done: neither blank, nor comment, nor docstring, nor import."""
    tree, said = _tree(path), path.read_text().splitlines()
    silent = set()
    for node in ast.walk(tree):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            silent |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return sum(bool(line.split("#")[0].strip()) for number, line in enumerate(said, 1) if number not in silent)


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _where(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(path: Path) -> Iterator[str]:
    """Every module that is imported, each name of `from x import y` as `x.y` where that is a module of ours."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names if _is_module(f"{module}.{alias.name}")]
            yield from inner or [module]


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()
