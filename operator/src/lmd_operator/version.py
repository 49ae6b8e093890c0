"""The version of everything released together: wheel, images, chart."""

from __future__ import annotations

VERSION = "0.1.0"
