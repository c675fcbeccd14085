"""`mesh`: the command line."""

from mesh_agent.cli.main import main

if __name__ == "__main__":
    main()
