//! The release binary as a process of ours: started with arguments, listened to, signalled, and killed when its test is
//! over. Knows no command.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;

use super::wait_for;

/// How long a process may take to start, and a command to end.
pub const PROCESS_MAX: Duration = Duration::from_secs(20);

/// Lines kept of what a process says; further ones are dropped.
const LINES_MAX: usize = 10_000;

/// The release binary, built once per process.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        // What Cargo tells this test of its own package would be new to build scripts that look at it, and have crates
        // compiled again that a build from a shell has compiled already.
        let own = env::vars_os().map(|(name, _)| name);
        for name in own.filter(|name| name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_"))) {
            build.env_remove(name);
        }
        let built = build
            .env_remove("CARGO_MANIFEST_DIR")
            .args(["build", "--release", "-p", "lookaside-cli", "--message-format", "json-render-diagnostics"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the release binary does not build");
        let messages = String::from_utf8(built.stdout).unwrap();
        let executable = messages.lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).unwrap();
            let is_ours = message["target"]["name"] == "lookaside" && message["target"]["kind"][0] == "bin";
            message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
        });
        executable.expect("a binary called lookaside")
    })
}

/// A process of ours. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// What a process has said so far.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        // Ends with the pipe, and that with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut lines = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < LINES_MAX {
                    lines.push(line);
                }
            }
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every line, once the reader has come to the end of the pipe.
    async fn complete(&self) -> String {
        wait_for("the end of what a process said", PROCESS_MAX, async || {
            (Arc::strong_count(&self.0) == 1).then_some(())
        })
        .await;
        self.all().join("\n")
    }
}

impl Process {
    /// Starts the binary with these arguments and nothing of the environment that it listens to.
    pub fn start<A: AsRef<str>>(args: &[A]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same, with these variables in its environment.
    pub fn start_with<A: AsRef<str>>(args: &[A], environment: &[(&str, &str)]) -> Self {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut command = Command::new(binary());
        let ours = |name: &OsStr| name == "RUST_LOG" || name.to_string_lossy().starts_with("LOOKASIDE_");
        for (variable, _) in env::vars_os().filter(|(name, _)| ours(name)) {
            command.env_remove(variable);
        }
        command.envs(environment.iter().copied());
        command.args(&args);
        Self::run(format!("lookaside {}", args.join(" ")), command)
    }

    /// Starts any other program. Ended like the others.
    pub fn run(name: String, mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self { name, child, stdout, stderr }
    }

    /// Sends a signal to it, and to nobody else.
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory of it that is in RAM, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
    }

    /// Time that it has spent on processors, its own and the kernel's for it.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name may hold anything, a closing bracket too.
        let (_, numbers) = stat.rsplit_once(')').unwrap();
        let ticks: u64 = numbers.split_whitespace().skip(11).take(2).map(|number| number.parse::<u64>().unwrap()).sum();
        // Linux counts these in hundredths of a second.
        Duration::from_millis(ticks * 10)
    }

    /// The first lines of its stdout, as JSON.
    pub async fn json_lines(&mut self, count: usize) -> Vec<Value> {
        let name = self.name.clone();
        wait_for(&format!("{count} lines of {name}"), PROCESS_MAX, async || {
            let lines = self.stdout.all();
            if lines.len() < count {
                let ended = self.child.try_wait().unwrap();
                assert!(ended.is_none(), "{name} ended with {ended:?}: {:#?}", self.stderr.all());
                return None;
            }
            Some(lines[..count].iter().map(|line| serde_json::from_str(line).unwrap()).collect())
        })
        .await
    }

    /// What it has said on stderr so far.
    pub fn said(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for its end. Panics after the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> Output {
        let what = format!("the end of {}", self.name);
        let status = wait_for(&what, deadline, async || self.child.try_wait().unwrap()).await;
        Output {
            command: self.name.clone(),
            code: status.code(),
            stdout: self.stdout.complete().await,
            stderr: self.stderr.complete().await,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let status = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {} ({status:?}), stderr:", self.name);
            let said = self.stderr.all();
            said.iter().skip(said.len().saturating_sub(60)).for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct Output {
    /// What it was told.
    pub command: String,
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Output {
    /// The JSON document on stdout. Panics when there is none, or the command failed.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Panics unless it ended with this code.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// Runs a command to its end.
pub async fn cli<A: AsRef<str>>(args: &[A]) -> Output {
    Process::start(args).ended(PROCESS_MAX).await
}

/// A file of its own for a test, gone with it.
#[derive(Debug)]
pub struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// Holds this text.
    pub fn new(text: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("lookaside-test-{}-{number}.yaml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // At worst a small file stays in the folder for such.
        let _ = fs::remove_file(&self.0);
    }
}

/// A directory of its own for a test, gone with it.
#[derive(Debug)]
pub struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "it makes something on disk")]
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("lookaside-test-{}-{number}.d", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a file in it is.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Renames a file with this text over the one of that name, as editors do.
    pub fn put(&self, name: &str, text: &str) {
        let new = self.at(&format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.at(name)).unwrap();
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // At worst a few small files stay in the folder for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A loopback address where nothing listens.
pub fn nowhere() -> SocketAddr {
    // Bound and let go: an address that no connection of this machine is made from, so nobody is given it meanwhile.
    std::net::TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap()
}
