"""The blueprint that the files of this folder put their routes on."""

from collections.abc import Callable
from typing import Any, TypeVar

from flask.sansio.blueprints import BlueprintSetupState

from mfa_service.web.blueprint import ensure_ready, make_blueprint

F = TypeVar("F", bound=Callable[..., Any])

blueprint = make_blueprint("auth")
blueprint.before_request(ensure_ready)


def post_unless_embedded(rule: str) -> Callable[[F], F]:
    """A route that is absent in a host's app: the host knows its users, and their passwords, itself."""

    def decorate(view: F) -> F:
        def add(state: BlueprintSetupState) -> None:
            if not state.options.get("is_embedded"):
                state.add_url_rule(rule, view.__name__, view, methods=["POST"])

        blueprint.record(add)
        return view

    return decorate
