"""One durable store: files that must survive a crash, and files that nobody has vouched for.

    reading      a regular file within bounds, held to what a record says of it
    unpacking    the same through .bz2, .gz, .xz or .zst
    json_lines   JSON lines, each fault named by file and line
    strict_json  one JSON object that a program of this project wrote
    writing      a file that is there as a whole or not at all
    lock         one writer to a folder

Every system call that changes a folder goes through the ``os`` module's functions, by attribute, which is
where the tests stop the process, fail a call or cut the power.
"""
