//! A process of a benchmark: this program with other arguments, spoken to by lines of JSON. It ends when its parent does.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lookaside_load::bench::Usage;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::exit::{Exit, Failure};

/// No answer of a child takes longer: a benchmark always ends.
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// Ended when dropped.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    said: Lines<BufReader<ChildStdout>>,
    told: ChildStdin,
    _folder: Option<Folder>,
}

/// A folder for what a child reads, gone when dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(of: &str) -> Result<Self, Failure> {
        let folder = Self(std::env::temp_dir().join(format!("lookaside-bench-{}-{of}", std::process::id())));
        std::fs::create_dir_all(&folder.0).map_err(|error| folder.failure(&error))?;
        Ok(folder)
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    pub(super) fn write(&self, file: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.path(file);
        std::fs::write(&path, text).map_err(|error| self.failure(&error))?;
        Ok(path)
    }

    fn failure(&self, error: &std::io::Error) -> Failure {
        Failure::new(Exit::Failed, format!("cannot write to {}: {error}", self.0.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts this program with other arguments; it is there to be spoken to.
fn start(name: &str, args: &[&str], kill_on_drop: bool) -> Result<Process, Failure> {
    let broken = |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot start {name}: {error}"));
    let program = std::env::current_exe().map_err(broken)?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(kill_on_drop);
    command.spawn().map_err(broken)
}

/// Starts another program that does not look whether anybody still wants it. What is given ends it when dropped, and so does the
/// end of this process, whatever its reason.
pub(super) fn guarded(name: &'static str, program: &[&str]) -> Result<Process, Failure> {
    start(name, &[&["bench", "part", "guard", "--"], program].concat(), false)
}

impl Child {
    /// Starts one and waits for the line that says it is ready.
    pub(super) async fn start<Ready: DeserializeOwned>(
        name: &'static str,
        args: &[&str],
    ) -> Result<(Self, Ready), Failure> {
        Self::hear_of(name, start(name, args, true)?, None).await
    }

    async fn hear_of<Ready: DeserializeOwned>(
        name: &'static str,
        mut process: Process,
        folder: Option<Folder>,
    ) -> Result<(Self, Ready), Failure> {
        let (Some(told), Some(said)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::new(Exit::Failed, format!("cannot speak to {name}")));
        };
        let mut child = Self { name, process, said: BufReader::new(said).lines(), told, _folder: folder };
        let ready = child.hear(ANSWER_MAX).await?;
        Ok((child, ready))
    }

    /// `serve` with a configuration, whose own use of the machine can be read.
    pub(super) async fn balancer(config: &str) -> Result<(Self, Listeners), Failure> {
        let (folder, args) = Self::serve(config, "warn")?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Self::hear_of("the balancer", start("the balancer", &args, true)?, Some(folder)).await
    }

    /// The same, guarded: for what takes long enough to be broken off.
    pub(super) async fn guarded_balancer(config: &str) -> Result<(Self, Listeners), Failure> {
        // Backends may end before it does: no news.
        let (folder, args) = Self::serve(config, "error")?;
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        let args: Vec<&str> = std::iter::once(&program).chain(&args).map(String::as_str).collect();
        Self::hear_of("the balancer", guarded("the balancer", &args)?, Some(folder)).await
    }

    fn serve(config: &str, log: &str) -> Result<(Folder, Vec<String>), Failure> {
        let folder = Folder::new("balancer")?;
        let path = folder.write("lookaside.yaml", config)?;
        let (path, any) = (path.to_string_lossy(), "127.0.0.1:0");
        let args = ["serve", "--config", &path, "--listen-client", any, "--listen-admin", any, "--listen-metrics", any];
        let args = [&args[..], &["--log", log]].concat();
        Ok((folder, args.into_iter().map(str::to_owned).collect()))
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask<Q: Serialize, A: DeserializeOwned>(&mut self, question: &Q) -> Result<A, Failure> {
        self.ask_for(question, Duration::ZERO).await
    }

    /// The same where the work itself takes so long.
    pub(super) async fn ask_for<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        question: &Q,
        takes: Duration,
    ) -> Result<A, Failure> {
        let line = serde_json::to_string(question).map_err(|error| self.failure(&error.to_string()))?;
        let told = self.told.write_all(format!("{line}\n").as_bytes()).await;
        told.map_err(|error| self.failure(&error.to_string()))?;
        self.hear(takes + ANSWER_MAX).await
    }

    async fn hear<A: DeserializeOwned>(&mut self, within: Duration) -> Result<A, Failure> {
        let line = match timeout(within, self.said.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(self.failure("it ended")),
            Ok(Err(error)) => return Err(self.failure(&error.to_string())),
            Err(_) => return Err(self.failure("no answer")),
        };
        serde_json::from_str(&line).map_err(|error| self.failure(&format!("{error} in {line}")))
    }

    fn failure(&self, reason: &str) -> Failure {
        Failure::new(Exit::Failed, format!("{}: {reason}", self.name))
    }

    /// What it has used.
    pub(super) fn usage(&self) -> Usage {
        self.process.id().map(Usage::of).unwrap_or_default()
    }
}

/// Where a balancer listens.
#[derive(serde::Deserialize)]
pub(super) struct Listeners {
    pub(super) client: String,
    pub(super) admin: String,
    #[serde(flatten)]
    _others: Value,
}
