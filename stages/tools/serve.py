"""Serve the offline teacher or judges on a port, with faults if wanted.

    python -m stages.tools serve teacher --port 8000
    python -m stages.tools serve judges --port 0 --latency 0.05 --rate-limit 20    # like a busy one

Any OpenAI client can use it. The teacher writes about the domain of data/domain.json, which the
judges know too; without that file, about chemistry. Reads data/domain.json and writes nothing: its
files and batches are in memory.
"""

import argparse


def main(arguments: list[str] | None = None) -> None:
    from stages.core import cli
    from stages.domain.description import load_domain_or_default
    from stages.judging import offline_judges
    from stages.teacher import offline_teacher
    from stages.tools.serving.fault_injection import Faults, add_options
    from stages.tools.serving.server import listen, server_of

    apps = {"teacher": offline_teacher.app_for, "judges": offline_judges.app_for}
    parser = argparse.ArgumentParser(
        prog="python -m stages.tools serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("who", choices=apps, help="who answers")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default %(default)s, this machine only)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="port to listen on, 0 picks a free one (default %(default)s)",
    )
    add_options(parser)
    options = vars(parser.parse_args(arguments))
    who, host, port = (options.pop(key) for key in ("who", "host", "port"))
    if not 0 <= port < 65536:
        parser.error("argument --port: a port is a number from 0 to 65535")

    def serve() -> None:
        app = apps[who](load_domain_or_default())
        try:
            faulty = Faults(server_of(app), **options)
        except ValueError as error:
            parser.error(str(error))
        listen(faulty, app.models, host, port)

    cli.guarded("serve", serve)
