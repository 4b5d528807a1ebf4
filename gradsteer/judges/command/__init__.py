"""``gradsteer judge``: other judges on responses that are there already, and how far they agree."""
