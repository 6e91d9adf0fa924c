"""What every term, operation, source, protocol, backbone and recipe must do, ours and a person's own.

A file a kind of thing, each with its checks: functions that raise when a promise isn't kept. `glocal check` runs them on
what it is given, the tests on everything in the package.
"""
