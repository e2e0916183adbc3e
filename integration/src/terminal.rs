//! A program that has a terminal to itself, as in a window on somebody's screen.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A pseudo-terminal and the program that has it as its controlling terminal; killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    screen: Arc<Screen>,
    /// How much of the screen was read.
    read: usize,
    child: Child,
}

#[derive(Debug, Default)]
struct Screen {
    text: Mutex<String>,
    grown: Condvar,
}

impl Terminal {
    /// Starts a program in a terminal of its own.
    ///
    /// # Panics
    ///
    /// If there is no terminal, or no such program.
    pub fn start(mut command: Command) -> Self {
        let (master, slave) = open().expect("there are terminals");
        let copy = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor can be copied"));
        command
            .stdin(copy(&slave))
            .stdout(copy(&slave))
            .stderr(copy(&slave));
        let hook = || {
            // SAFETY: system calls with constant arguments, allowed between fork and exec.
            unsafe {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                // As after a login: what runs the tests may have been started in the background, where a shell has its
                // programs ignore these.
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            Ok(())
        };
        // SAFETY: the hook makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(hook) };
        let child = command.spawn().expect("the program can be started");
        drop((slave, command));
        let keyboard = File::from(master);
        let screen = Arc::new(Screen::default());
        let mut output = keyboard.try_clone().expect("a descriptor can be copied");
        thread::spawn({
            let screen = Arc::clone(&screen);
            move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = output.read(&mut buffer) {
                    screen
                        .lock()
                        .push_str(&String::from_utf8_lossy(&buffer[..length]));
                    screen.grown.notify_all();
                }
            }
        });
        Self {
            keyboard,
            screen,
            read: 0,
            child,
        }
    }

    /// Types.
    ///
    /// # Panics
    ///
    /// If the terminal is gone.
    pub fn send(&mut self, text: &str) {
        let typed = self.keyboard.write_all(text.as_bytes());
        typed.expect("the terminal is there");
    }

    /// Waits until `text` appears behind what was expected last.
    ///
    /// # Panics
    ///
    /// If it does not within `limit`.
    #[track_caller]
    pub fn expect(&mut self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut screen = self.screen.lock();
        loop {
            if let Some(at) = screen[self.read..].find(text) {
                self.read += at + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {text:?} on the screen:\n{}", *screen);
            screen = self
                .screen
                .grown
                .wait_timeout(screen, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the program to end; `None` if it has not after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Screen {
    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both numbers are live; no name, settings or size are asked for.
    let opened = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were opened just now, and are given to their owners.
    let ends = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    for end in [&ends.0, &ends.1] {
        // SAFETY: a flag of an open descriptor; no other program is to have it.
        if unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(ends)
}
