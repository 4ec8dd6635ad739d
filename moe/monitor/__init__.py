"""What a served model sees, and whether it is still what it was made for.

`telemetry` writes the `rows` of answered requests while it serves, and `reading` reads them as a
`moe.profile.Profile`. `drift` holds windows of them against a reference by the `comparisons`, which
rest on the tests of `two_samples`; `report` and `pictures` show what it found. `study` measures
the monitor itself.
"""
