"""The guest's kernel seen from outside: symbols, types, unwinding."""
