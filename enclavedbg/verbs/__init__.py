"""The command's families of verbs, such as `enclavedbg eif describe`: one module a verb, loaded when it is used."""
