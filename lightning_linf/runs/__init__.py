"""Read what the monitors wrote into folders of runs, whichever logger wrote it."""
