"""The path by which Dassl's users import `Backbone`."""

from .build import Backbone  # noqa: F401
