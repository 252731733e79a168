"""python -m imp_kit"""

from imp_kit.interrupts import prepare

prepare()

from imp_kit.cli import main  # noqa: E402

main()
