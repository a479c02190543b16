"""The processes of one run on several hosts: how they find each other, agree, and learn that one is gone.

Each of them holds a TCP connection to process 0 as long as the run lasts. What the host has to say to the
others goes through it, in the order of the program: `share`, `gather`. Work on devices never does. The system
closes the connections of a process that dies, however it dies, so the others know within milliseconds; one
that is cut off or stopped is given up after `distributed.heartbeat_s` seconds of silence. In both cases each
process ends with one line. Nothing here imports jax.
"""

from jaxrl.hosts.meeting import checked, free_port, join
from jaxrl.hosts.team import ALONE, Alone, Team

__all__ = ["ALONE", "Alone", "Team", "checked", "free_port", "join"]
