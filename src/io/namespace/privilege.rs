//! Gives up what the namespaces brought, and becomes the command.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Drops every capability over the namespaces, and all but one from the set that programs can gain.
///
/// CAP_NET_RAW stays there, since some distributions give it to the file of `ping`, which does not start without; what
/// it lets a program do is send what it likes into the TUN.
///
/// # Errors
/// What the kernel says.
pub fn drop_privilege() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability == CapabilitySet::NET_RAW {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // This kernel has no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}

/// Becomes `command`, looked up as a shell does; signals are as whoever started this process left them.
///
/// # Errors
/// It returns only then. `NotFound` where there is no such program.
pub fn exec(command: &[OsString]) -> io::Result<Infallible> {
    let words: Vec<CString> = command
        .iter()
        .map(|word| CString::new(OsStr::as_bytes(word)))
        .collect::<Result<_, _>>()?;
    let Some(program) = words.first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut pointers: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: SIGPIPE exists, and the default needs no handler. The runtime of Rust has it ignored, which a program
    // would inherit.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `program` and the words end with a zero, the list with a null pointer, and all outlive the call.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    Err(io::Error::last_os_error())
}
