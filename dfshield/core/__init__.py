"""The ground floor: files, hashes, random numbers, devices, threat models. Nothing here knows the method."""
