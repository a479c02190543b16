"""python -m jaxrl.runs"""

import sys

from jaxrl import commands, runs, runtime

if __name__ == "__main__":
    runtime.leave_at_once(commands.flushed(runs.main(sys.argv[1:])))
