"""Where the API's process begins: the application, imported at less than it would cost."""

from __future__ import annotations

import gc

# Nearly all that an import makes is there to stay. Looking through it for garbage, over and over, took a tenth of the
# start; and what is frozen is not looked through later either.
gc.disable()

from app.api.application import create_app  # noqa: E402

gc.freeze()
gc.enable()

__all__ = ["create_app"]
