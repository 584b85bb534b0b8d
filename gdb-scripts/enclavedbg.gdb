# Comfort for gdb with enclavedbg: gdb -x gdb-scripts/enclavedbg.gdb -ex 'target remote :1234'
# Nothing here is needed: without it everything works too.

set pagination off
# The kernel's symbols come from enclavedbg itself.
set sysroot target:
# A function of a module that is not loaded yet may be named.
set breakpoint pending on
set tcp auto-retry on
set remotetimeout 30
# Ctrl-C stops the machine; the guest never sees it.
handle SIGINT nopass

define regs
  monitor registers
end
document regs
Show all registers of the machine, system registers in words.
end

define pcrs
  monitor pcrs
end
document pcrs
Show the platform configuration registers of the enclave.
end

define attest
  monitor attest
end
document attest
Ask the secure module for an attestation document and show it decoded.
end

define vsock
  monitor vsock
end
document vsock
Show the vsock connections of the enclave.
end
