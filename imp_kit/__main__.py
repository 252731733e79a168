"""What starts the command line: `python -m imp_kit`, and the console command `imp-kit`."""

from imp_kit.system.interrupts import prepare


def start() -> None:
    """Run a command; an interrupt while its modules are still being imported leaves no traceback."""
    prepare()
    from imp_kit.tools.cli import main

    main()


if __name__ == "__main__":
    start()
