"""What a served model sees, and whether it is still what it was made for.

`telemetry` writes rows while it serves and `reading` reads them; `drift` compares them with a
`moe.profile.Profile` by the tests of `two_samples`; `report` and `pictures` show what it found.
"""
