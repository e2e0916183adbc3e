//! Child processes that never outlive the test that started them.
//!
//! The parent-death signal of Linux fires when the *thread* that forked ends, so every child is forked by one thread
//! that lives as long as this process. Output is collected as it comes, and printed when the test fails.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// A running child process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    ended: Option<ExitStatus>,
}

/// What a child has printed so far, both streams interleaved by line.
#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<Line>,
    dropped: usize,
    open_streams: usize,
}

#[derive(Debug)]
struct Line {
    from: Stream,
    text: String,
}

/// Where a child wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// A signal a test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end in an orderly way.
    Terminate,
    /// SIGINT: what Ctrl-C sends.
    Interrupt,
    /// SIGKILL: end at once, with nothing undone.
    Kill,
    /// SIGHUP: what a terminal that is closed sends, and what tells a service to reload.
    HangUp,
    /// SIGUSR1: reload.
    User1,
    /// SIGSTOP: stand still, as a suspended machine does.
    Stop,
    /// SIGCONT: go on after [`Signal::Stop`].
    Continue,
}

/// What a command that was run to its end gave back.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

impl Process {
    /// Starts `command` as `name`, with its output collected.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn spawn(name: &str, command: Command) -> Self {
        Self::spawn_with_fds(name, command, &[])
    }

    /// Starts `command` with the descriptors of `passed` open in the child under the numbers beside them.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn spawn_with_fds(name: &str, mut command: Command, passed: &[(&File, RawFd)]) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let passed: Vec<_> = passed
            .iter()
            .map(|(file, fd)| (file.as_raw_fd(), *fd))
            .collect();
        let mut child = fork(command, passed)
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let output = Arc::new(Output::default());
        let collect = |from: Stream, stream: Box<dyn Read + Send>| {
            output.lock().open_streams += 1;
            let output = Arc::clone(&output);
            thread::spawn(move || output.collect(from, stream));
        };
        if let Some(stream) = child.stdout.take() {
            collect(Stream::Output, Box::new(stream));
        }
        if let Some(stream) = child.stderr.take() {
            collect(Stream::Error, Box::new(stream));
        }
        Self {
            name: name.to_owned(),
            child,
            output,
            ended: None,
        }
    }

    /// Sends `signal` to this process, and only to it.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_some() {
            return;
        }
        let number = match signal {
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Kill => libc::SIGKILL,
            Signal::HangUp => libc::SIGHUP,
            Signal::User1 => libc::SIGUSR1,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
        };
        // SAFETY: plain system call; the child has not been waited for, so the id cannot belong to another process.
        unsafe { libc::kill(self.pid().cast_signed(), number) };
    }

    /// Waits for the process to end; `None` if it has not after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.wait(Duration::from_secs(10));
    }

    /// The exit status, if the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Every line printed so far that is still kept, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.output
            .lock()
            .kept
            .iter()
            .map(|line| line.text.clone())
            .collect()
    }

    /// Every line of one stream printed so far that is still kept, oldest first.
    pub fn lines_of(&self, from: Stream) -> Vec<String> {
        let lines = self.output.lock();
        lines
            .kept
            .iter()
            .filter(|line| line.from == from)
            .map(|line| line.text.clone())
            .collect()
    }

    /// Everything printed so far that is still kept, as one text.
    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Waits until a line satisfies `wanted` and returns it; `None` after `limit` or once the output has ended.
    pub fn wait_for_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.output.lock();
        loop {
            if let Some(line) = lines.kept.iter().find(|line| wanted(&line.text)) {
                return Some(line.text.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.open_streams == 0 {
                return None;
            }
            lines = self
                .output
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let lines = self.output.lock();
            eprintln!(
                "──── {} (pid {}, {:?})",
                self.name,
                self.child.id(),
                self.ended
            );
            let skipped = lines.kept.len().saturating_sub(LINES_SHOWN);
            if lines.dropped + skipped > 0 {
                eprintln!("     … {} earlier lines", lines.dropped + skipped);
            }
            for line in lines.kept.iter().skip(skipped) {
                eprintln!("     {}", line.text);
            }
        }
    }
}

impl Finished {
    /// Both streams, one after the other.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, from: Stream, stream: impl Read) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader
                .by_ref()
                .take(LINE_LIMIT)
                .read_until(b'\n', &mut line)
            {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let mut lines = self.lock();
            if lines.kept.len() == LINES_KEPT {
                lines.kept.pop_front();
                lines.dropped += 1;
            }
            lines.kept.push_back(Line { from, text });
            drop(lines);
            self.grown.notify_all();
        }
        self.lock().open_streams -= 1;
        self.grown.notify_all();
    }
}

/// Runs `command` to its end and returns what it printed.
///
/// # Panics
///
/// If it cannot be started, or has not ended after `limit`.
pub fn run(mut command: Command, limit: Duration) -> Finished {
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = fork(command, Vec::new())
        .unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
    let stdout = child.stdout.take().map(slurp);
    let stderr = child.stderr.take().map(slurp);
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for an own child works") {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{shown} had not ended after {limit:?}");
        }
        thread::sleep(POLL);
    };
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|r| r.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Finished {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// Raises the limit of open descriptors of this process to the hard one, for tests that hold thousands of sockets.
///
/// Returns the limit in force afterwards.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid, exclusively borrowed structure.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: takes and changes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread into the network namespace behind `file`.
///
/// # Errors
///
/// What the kernel says, as an [`io::Error`].
pub fn enter_network(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; only this thread is affected.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Lets `command` run inside the namespaces behind `network` and `mounts`.
pub fn run_inside(command: &mut Command, network: RawFd, mounts: RawFd) {
    let hook = move || {
        // SAFETY: only system calls, allowed between fork and exec; the descriptors are held open by the caller.
        unsafe {
            check(libc::setns(network, libc::CLONE_NEWNET))?;
            check(libc::setns(mounts, libc::CLONE_NEWNS))
        }
    };
    // SAFETY: the hook makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Lets `command` run in a session of its own, without a terminal, as services do.
pub fn run_without_terminal(command: &mut Command) {
    // SAFETY: only system calls, allowed between fork and exec.
    let hook = || unsafe {
        // As a service begins: whoever runs the tests may have been started by `nohup`.
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
        check(libc::setsid().min(0))
    };
    // SAFETY: the hook makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Lets `command` run in a session of its own whose terminal is new; returns the end that a terminal's window has. Dropping it
/// closes the window.
///
/// # Panics
///
/// If the system gives no terminal.
pub fn run_in_terminal(command: &mut Command) -> File {
    let (mut window, mut terminal) = (-1, -1);
    use std::ptr::{null, null_mut};
    // SAFETY: both numbers are written to, the other pointers may be null.
    let made = unsafe { libc::openpty(&mut window, &mut terminal, null_mut(), null(), null()) };
    assert_eq!(made, 0, "no terminal: {}", io::Error::last_os_error());
    // SAFETY: the call has just made both, and nobody else knows them.
    let (window, terminal) = unsafe { (File::from_raw_fd(window), File::from_raw_fd(terminal)) };
    // SAFETY: an own descriptor; a child must not hold the window open.
    unsafe { libc::fcntl(window.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    let hook = move || {
        // SAFETY: only system calls, allowed between fork and exec; the terminal is open as long as the hook lives.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            check(libc::setsid().min(0))?;
            check(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0))
        }
    };
    // SAFETY: the hook makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(hook) };
    window
}

/// Lets `command` run in a network and a mount namespace of its own.
pub fn run_unshared(command: &mut Command) {
    let hook = || {
        // SAFETY: only system calls with constant arguments, allowed between fork and exec.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS))?;
            // or mounts made inside would spread to the machine
            let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
            check(libc::mount(
                none,
                root,
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ))
        }
    };
    // SAFETY: the hook makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Forks `command` from the thread that lives as long as the process, with a parent-death signal.
pub(crate) fn fork(mut command: Command, passed: Vec<(RawFd, RawFd)>) -> io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static FORKER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let hook = move || {
        // SAFETY: only system calls, allowed between fork and exec; numbers were open in the parent.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            for (from, to) in &passed {
                if from == to {
                    check(libc::fcntl(*from, libc::F_SETFD, 0))?;
                } else {
                    check(libc::dup2(*from, *to))?;
                }
            }
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(hook) };
    let (answer, result) = mpsc::channel();
    let job = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    forker
        .send(job)
        .map_err(|_| io::Error::other("the forking thread is gone"))?;
    result
        .recv()
        .map_err(|_| io::Error::other("the forking thread is gone"))?
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn slurp(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// Short enough to be lost in the noise, long enough to cost nothing.
const POLL: Duration = Duration::from_millis(10);
/// A test that logs more than this is read from its end anyway.
const LINES_KEPT: usize = 20_000;
/// What a person still reads in a failed run.
const LINES_SHOWN: usize = 150;
/// One line of a log; what is longer is split.
const LINE_LIMIT: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_both_streams_is_collected() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        let mut process = Process::spawn("sh", command);
        assert!(
            process
                .wait_for_line(Duration::from_secs(10), |line| line == "out")
                .is_some()
        );
        assert!(
            process
                .wait_for_line(Duration::from_secs(10), |line| line == "err")
                .is_some()
        );
        assert!(
            process
                .wait(Duration::from_secs(10))
                .is_some_and(|status| status.success())
        );
    }

    #[test]
    fn dropped_process_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::spawn("sleep", command);
        let path = format!("/proc/{}", process.pid());
        assert!(std::path::Path::new(&path).exists());
        drop(process);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn line_that_never_comes_ends_with_the_output() {
        let process = Process::spawn("true", Command::new("true"));
        assert_eq!(
            process.wait_for_line(Duration::from_secs(60), |line| line == "x"),
            None
        );
    }

    #[test]
    fn passed_descriptor_has_its_number() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready >&3"]);
        let _process = Process::spawn_with_fds("sh", command, &[(&writer, 3)]);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "ready\n");
    }
}
