"""python -m imp_kit"""

from imp_kit.cli import main

main()
