from iqc.cli import main

main()
