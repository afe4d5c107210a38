"""The blueprint that the files of this folder put their routes on."""

from mfa_service.web.blueprint import ensure_ready, make_blueprint

blueprint = make_blueprint("api")
blueprint.before_request(ensure_ready)
