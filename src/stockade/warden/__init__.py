"""The only privileged code: makes sandboxes, owns their output and their end.

One process a host, single-threaded, standard library and system calls only. It imports nothing of ours, so that it
can be read by itself: `protocol` (what it is asked), `server` (the loop), `sandbox` (one run from the outside),
`init` (the same from the inside, PID 1), and one module for each kernel facility: `namespaces`, `mounts`, `image`,
`cgroups`, `seccomp`, `bundle`.
"""
