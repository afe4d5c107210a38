"""The files under deploy/ agree with the service, with each other and with what they promise.

Docker, Compose and Kubernetes are not run here: what is said of them is read from their files.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from mfa_service.config import Settings, env_name, unknown_names
from mfa_service.services.database import options_for
from mfa_service.web.contract import MAX_BYTES
from tests.conftest import ROOT, program
from tests.stack import nginx_command, site

DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "secrets" not in path.parent.name)
SETTINGS = {env_name(spec) for spec in fields(Settings)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"\bMFA_[A-Z0-9_]+", path.read_text()))
    assert {name.removesuffix("_FILE") for name in named} <= SETTINGS


def test_what_is_set_is_valid_and_known() -> None:
    compose, kubernetes = compose_file(), by_kind("config.yaml")["ConfigMap"]["data"]
    of_compose = {name: default_of(value) for name, value in compose["services"]["replica-a"]["environment"].items()}
    for settings in (example(), kubernetes, {name: of_compose[name] for name in of_compose if name in SETTINGS}):
        assert unknown_names(settings) == []
        loaded = Settings.load(settings, needs_keys=False)
        assert (loaded.public_url, loaded.trusted_proxies) == ("https://auth.example", 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"PRIVATE KEY|[A-Za-z0-9+/]{40}|[0-9a-f]{32}", text)
    for password in re.findall(r"://[^\s/]*:([^\s@/]+)@", text):
        assert re.fullmatch(r"PASSWORD|%s", password)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_route_that_is_named_exists(app: Flask) -> None:
    routes = {str(rule) for rule in app.url_map.iter_rules()}
    container = by_kind("deployment.yaml")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes["startup"] == "/readyz", "a version that can't reach its database replaces none that can"
    assert probes["readiness"] == "/healthz", (
        "or without Redis, which the service gets on without, no pod would be left"
    )
    assert probes["liveness"] == "/healthz", "to restart the service would bring no database back"
    named = set(probes.values()) | set(re.findall(r"http://127\.0\.0\.1:8000(/\w+)", text("Dockerfile")))
    named |= set(re.findall(r"location (?:= |\^~ )(/(?!_mfa/)\S+)", text("nginx/service.conf")))
    assert named <= routes


def test_probes_use_a_name_that_is_answered() -> None:
    container = by_kind("deployment.yaml")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    for name in ("startup", "liveness", "readiness"):
        assert container[f"{name}Probe"]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]


def test_whoever_asks_a_pod_by_itself_uses_a_name_that_is_answered() -> None:
    container = by_kind("deployment.yaml")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    named = {entry["name"]: entry for entry in container["env"]}
    assert named["POD_IP"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    service = by_kind("deployment.yaml")["Service"]["metadata"]
    assert named["MFA_ALLOWED_HOSTS"]["value"] == f"$(POD_IP),{service['name']}.{service['namespace']}.svc"
    assert list(named).index("POD_IP") < list(named).index("MFA_ALLOWED_HOSTS"), "what is put in stands before"
    services = compose_file()["services"]
    addresses = [services[name]["networks"]["front"]["ipv4_address"] for name in ("replica-a", "replica-b")]
    assert services["replica-a"]["environment"]["MFA_ALLOWED_HOSTS"].split(",") == addresses


def test_postgresql_takes_all_connections_that_the_replicas_may_open() -> None:
    services = compose_file()["services"]
    [allowed] = re.findall(r"max_connections=(\d+)", " ".join(services["database"]["command"]))
    replicas = [name for name in services if name.startswith("replica-")]
    processes = len(replicas) * int(services["replica-a"]["environment"]["WEB_CONCURRENCY"])
    options = options_for("postgresql+psycopg://")
    each = options["pool_size"] + options["max_overflow"]
    assert int(allowed) > processes * each + 30, "and those of an upgrade and of commands"


def test_whoever_stops_a_replica_waits_for_longer_than_it_takes() -> None:
    graceful = gunicorn_says("graceful_timeout")
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", text("systemd/mfa.service"), re.M)[1]) > graceful
    assert seconds(compose_file()["services"]["replica-a"]["stop_grace_period"]) > graceful
    pod = by_kind("deployment.yaml")["Deployment"]["spec"]["template"]["spec"]
    [_, pause] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > graceful + int(pause)


def test_nginx_and_what_is_behind_it_have_the_same_bounds() -> None:
    conf = text("nginx/service.conf")
    assert seconds(nginx_says(conf, "proxy_read_timeout")) > gunicorn_says("timeout")
    assert nginx_says(conf, "client_max_body_size") == f"{MAX_BYTES // 1024}k"
    for replicas in (text("nginx/service-replicas.conf"), text("compose/replicas.conf")):
        assert "keepalive_timeout" not in replicas, "nginx's own is a minute"
    assert gunicorn_says("keepalive") > 60


# ── nginx, systemd ───────────────────────────────────────────────────────────────────────────────


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    main = site(tmp_path, 8443, ["127.0.0.1:8000", "127.0.0.1:8001"])
    for replicas in ("nginx/service-replicas.conf", "compose/replicas.conf"):
        shutil.copy(DEPLOY / replicas, tmp_path / "service-replicas.conf")
        check = run([*nginx_command(program("nginx"), main), "-t"])
        assert check.returncode == 0, check.stderr
        assert "[warn]" not in check.stderr


def test_nginx_repeats_nothing_that_is_spent_by_the_first_try() -> None:
    conf = text("nginx/service.conf")
    repeated = re.findall(r"location ([^{]+) \{[^}]*non_idempotent", re.sub(r"#.*", "", conf))
    assert repeated == ["= /auth/refresh"]


def test_nginx_lets_nobody_from_outside_say_what_is_traced() -> None:
    cleared = set(re.findall(r'proxy_set_header (\S+) +"";', text("nginx/service.conf")))
    assert {"traceparent", "tracestate", "baggage"} <= cleared


def test_systemd_takes_its_units_and_finds_little_to_say_against_them(tmp_path: Path) -> None:
    units = []
    for path in sorted((DEPLOY / "systemd").glob("mfa*.[!e]*")):
        # It looks whether programs and users are there.
        unit = re.sub(r"/opt/mfa_service/\.venv/bin/\w+", "/usr/bin/env", path.read_text())
        units.append(tmp_path / path.name)
        units[-1].write_text(re.sub(r"^(User|Group)=mfa$", r"\1=daemon", unit, flags=re.M))
    assert {unit.name for unit in units} == {"mfa.service", "mfa.socket", "mfa-daily.service", "mfa-daily.timer"}
    binary = program("systemd-analyze")
    said = run([binary, "verify", "--man=no", *map(str, units)])
    assert (said.returncode, said.stderr) == (0, "")
    for unit in (unit for unit in units if unit.suffix == ".service"):
        said = run([binary, "security", "--offline=true", "--threshold=15", "--no-pager", str(unit)])
        assert said.returncode == 0, said.stdout


def test_systemd_hides_the_history_from_the_service() -> None:
    for unit in ("mfa.service", "mfa-daily.service"):
        assert "InaccessiblePaths=-/opt/mfa_service/.git" in text(f"systemd/{unit}").splitlines()


def test_systemd_runs_what_is_in_the_checkout() -> None:
    unit = text("systemd/mfa.service")
    commands = re.findall(r"^Exec(?:StartPre|Start)=/opt/mfa_service/\.venv/bin/(.+)$", unit, re.M)
    assert commands == ["flask mfa upgrade", "gunicorn wsgi:app"]
    assert "WorkingDirectory=/opt/mfa_service\n" in unit
    assert (ROOT / "wsgi.py").is_file()
    assert (ROOT / "gunicorn.conf.py").is_file(), "gunicorn finds it there by itself"
    assert "EnvironmentFile=/etc/mfa_service/mfa.env\n" in unit
    assert example()["MFA_INSTANCE"] == "/var/lib/mfa_service"
    assert "StateDirectory=mfa_service\n" in unit


# ── the image ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_copied_into_the_image_exists_and_is_sent_to_the_builder() -> None:
    sources = [
        word
        for instruction, rest in dockerfile()
        if instruction == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    ]
    sent = [line[1:] for line in text("Dockerfile.dockerignore").splitlines() if line.startswith("!")]
    assert sorted(sources) == sorted(sent)
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_is_built_from_what_is_pinned_and_nothing_else() -> None:
    for instruction, rest in dockerfile():
        assert instruction != "ADD"
        assert not re.search(r"\bcurl\b|\bwget\b|\bapt|\bgit\b|:latest\b", rest)
        for command in re.findall(r"\bpip\b[^&]*\binstall\b[^&]*", rest):
            assert "--require-hashes" in command or {"--no-deps", "--no-index"} <= set(command.split())
    requirements = [
        line for line in (ROOT / "requirements/serve.txt").read_text().splitlines() if line[:1] not in ("", " ", "#")
    ]
    assert all(re.fullmatch(r"[a-z0-9._-]+==\S+ \\", line) for line in requirements)


def test_the_image_runs_as_nobody_special_and_holds_no_secret() -> None:
    stages = "\n".join(f"{instruction} {rest}" for instruction, rest in dockerfile()).split("FROM ")
    last = stages[-1]
    [user] = re.findall(r"^USER (.*)$", last, re.M)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "a number, so that Kubernetes sees that it is not root"
    assert "HEALTHCHECK" in last
    assert "uninstall -y setuptools wheel" in stages[-2]
    assert re.search(r"^ENTRYPOINT \[", last, re.M), "no shell in between: SIGTERM reaches gunicorn"
    assert re.search(r"^CMD \[", last, re.M)
    for instruction, rest in dockerfile():
        if instruction in ("ENV", "ARG"):
            assert not re.search(r"SECRET|PASSWORD|TOKEN|_KEY|DATABASE_URL|REDIS_URL", rest)


def test_a_secret_can_come_by_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:a b$c'd@redis:6379/0\n")
    environment = {"PATH": os.environ["PATH"], "MFA_REDIS_URL_FILE": str(tmp_path / "url"), "OTHER_FILE": "/nowhere"}
    command = [str(DEPLOY / "entrypoint.sh"), "env"]
    said = run(command, env=environment).stdout.splitlines()
    assert "MFA_REDIS_URL=redis://:a b$c'd@redis:6379/0" in said
    assert not any(line.startswith("MFA_REDIS_URL_FILE") for line in said)
    assert "OTHER_FILE=/nowhere" in said

    environment["MFA_REDIS_URL_FILE"] = "/nowhere"
    assert run(command, env=environment).returncode != 0, "and without it nothing starts"


# ── Compose ──────────────────────────────────────────────────────────────────────────────────────


def test_passwords_are_made_once_and_for_this_place_alone(tmp_path: Path) -> None:
    made = [secrets_in(tmp_path / name) for name in ("one", "two", "one")]
    assert made[0] == made[2], "a second run changes nothing"
    for name, content in made[0].items():
        assert content != made[1][name]
    folder = tmp_path / "one/secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert made[0]["database_password"].strip() in made[0]["database_url"]
    assert made[0]["redis_password"].strip() in made[0]["redis_url"]
    assert f"requirepass {made[0]['redis_password'].strip()}\n" in made[0]["redis.conf"]
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_file_that_compose_names_is_there_or_is_made(tmp_path: Path) -> None:
    compose = compose_file()
    made = {f"./compose/secrets/{name}" for name in secrets_in(tmp_path)}
    assert {secret["file"] for secret in compose["secrets"].values()} == made
    certificate = {"./compose/secrets/auth.example.pem", "./compose/secrets/auth.example.key"}
    mounted = {
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])
    }
    named = {path for path in mounted if path.startswith(".")} - certificate
    assert named == {"./nginx/service.conf", "./compose/replicas.conf"}
    assert all((DEPLOY / path).is_file() for path in named)
    assert mounted - named - certificate == set(compose["volumes"])
    build = compose["services"]["migrate"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    for service in compose["services"].values():
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        assert set(service.get("networks", [])) <= set(compose["networks"])
        assert set(service.get("depends_on", ())) <= set(compose["services"])


def test_nginx_of_compose_knows_the_replicas() -> None:
    services = compose_file()["services"]
    addresses = [services[name]["networks"]["front"]["ipv4_address"] for name in ("replica-a", "replica-b")]
    assert re.findall(r"server (\S+):8000 ", text("compose/replicas.conf")) == addresses


def test_each_container_can_do_little_and_is_seen_to_work() -> None:
    for name, service in compose_file()["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert service["pids_limit"]
        assert not {"privileged", "pid", "network_mode"} & set(service)
        assert ("ports" in service) is (name == "nginx"), "nobody else is reached from outside"
        own_image = service["image"].startswith("mfa_service:")
        assert own_image or service["healthcheck"]["test"], "ours brings one"
        for variable in service.get("environment", {}):
            assert "PASSWORD" not in variable or variable.endswith("_FILE")


# ── Kubernetes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", ["deployment.yaml", "migrate.yaml", "daily.yaml", "command.yaml"])
def test_a_pod_can_do_little(file: str) -> None:
    [pod] = pods_in(file)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [user] = re.findall(r"^USER (\d+):", text("Dockerfile"), re.M)
    assert pod["securityContext"]["runAsUser"] == int(user)
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert container["resources"]["limits"]["memory"]
        assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("file", ["daily.yaml", "command.yaml"])
def test_what_runs_commands_has_what_the_service_has(file: str) -> None:
    [pod], [service] = pods_in(file), pods_in("deployment.yaml")
    [running], [serving] = pod["containers"], service["containers"]
    assert (running["image"], running["envFrom"]) == (serving["image"], serving["envFrom"])
    assert running["volumeMounts"] == [mount for mount in serving["volumeMounts"] if mount["name"] != "tmp"]
    assert without_modes(pod["volumes"]) == without_modes(service["volumes"])


def test_an_upgrade_and_a_drained_machine_leave_a_replica() -> None:
    kinds = by_kind("deployment.yaml")
    spec = kinds["Deployment"]["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert kinds["PodDisruptionBudget"]["spec"]["minAvailable"] >= 1


def test_what_serves_reaches_its_database_and_its_store_alone() -> None:
    egress = by_kind("network-policy.yaml")["NetworkPolicy"]["spec"]["egress"]
    assert all(rule["to"] for rule in egress)
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 5432, 6379}
    file = compose_file()
    for replica in ("replica-a", "replica-b"):
        assert all(file["networks"][name]["internal"] for name in file["services"][replica]["networks"])


def test_labels_ports_and_names_in_kubernetes_fit_together() -> None:
    kinds, policy = by_kind("deployment.yaml"), by_kind("network-policy.yaml")["NetworkPolicy"]["spec"]
    pod = kinds["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    [container] = pod["spec"]["containers"]
    [port] = container["ports"]
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert policy["ingress"][0]["ports"] == [{"port": port["containerPort"], "protocol": "TCP"}]
    assert policy["policyTypes"] == ["Ingress", "Egress"]

    known = {document["metadata"]["name"] for document in documents("secrets.example.yaml")}
    volumes = [volume["projected"]["sources"][0] for volume in pod["spec"]["volumes"] if "projected" in volume]
    used = {source["secret"]["name"] for source in volumes}
    used |= {source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source}
    assert used == known
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["spec"]["volumes"]}
    settings = by_kind("config.yaml")["ConfigMap"]["data"]
    assert settings["MFA_KEYRING"] == f"{mounted['keyring']}/keyring.json"
    assert (settings["MFA_SIGNING_KEYS"], settings["MFA_SEAL_KEYS"]) == (mounted["signing-keys"], mounted["seal-keys"])


# ── the README ───────────────────────────────────────────────────────────────────────────────────


def test_the_readme_names_what_is_there() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Deploy it\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", section))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
    for path in ("deploy/nginx/service.conf", "deploy/systemd", "deploy/compose.yaml", "deploy/kubernetes"):
        assert path in section


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def text(path: str) -> str:
    return (DEPLOY / path).read_text()


def compose_file() -> dict[str, Any]:
    return dict(yaml.safe_load(text("compose.yaml")))


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text(f"kubernetes/{file}")))


def by_kind(file: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in documents(file)}


def pods_in(file: str) -> list[dict[str, Any]]:
    """What each workload of a file makes pods of."""
    specs = [document["spec"] for document in documents(file)]
    specs = [spec.get("jobTemplate", {"spec": spec})["spec"] for spec in specs]
    specs = [spec.get("template", {"spec": spec})["spec"] for spec in specs]
    return [spec for spec in specs if "containers" in spec]


def without_modes(volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """The volumes that hold keys, by name: where they come from."""
    return {volume["name"]: volume["projected"]["sources"] for volume in volumes if "projected" in volume}


def example() -> dict[str, str]:
    """What mfa.env.example sets, also what it only offers."""
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", text("systemd/mfa.env.example"), re.M)
    return dict(lines)


def default_of(value: str) -> str:
    """What Compose makes of `${NAME:-default}` where there is no NAME."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def dockerfile() -> Iterator[tuple[str, str]]:
    """Its instructions, each with the rest of its line and of the lines that go on."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text("Dockerfile"), flags=re.M))
    for line in filter(None, joined.splitlines()):
        instruction, _, rest = line.partition(" ")
        yield instruction, rest


def gunicorn_says(name: str) -> int:
    return int(re.search(rf"^{name} = (\d+)$", (ROOT / "gunicorn.conf.py").read_text(), re.M)[1])


def nginx_says(conf: str, name: str) -> str:
    return re.search(rf"^\s*{name}\s+(\w+);", conf, re.M)[1]


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text)[1])


def secrets_in(folder: Path) -> dict[str, str]:
    """What deploy/compose/secrets.sh makes beside itself."""
    folder.mkdir(exist_ok=True)
    script = shutil.copy(DEPLOY / "compose/secrets.sh", folder)
    subprocess.run(["sh", script], check=True, capture_output=True)
    return {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
