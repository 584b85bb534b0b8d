"""How the guest images are made: fetching, compiling, assembling. The scripts beside this package are its front."""
