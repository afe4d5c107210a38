"""The blueprint that the files of this folder put their routes on."""

from flask import Blueprint

blueprint = Blueprint("auth", __name__)
