//! How a command ends: the exit codes that scripts rely on, and the one line on stderr that goes with each failure.
//! It knows nothing of any command.

use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Shown by `lookaside --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0   ok
  1   a check or a condition failed
  2   wrong usage
  3   no such service, endpoint, client, scenario or file of one
  4   the balancer cannot be reached; for orders to several: at least one replica could not be reached
  5   --wait timed out
  6   permission denied
  78  the configuration, or a scenario, is invalid

Data goes to stdout, everything else to stderr. Colours are off when NO_COLOR is set.";

/// What to do when the wrong listener was asked.
const LISTENERS: &str = "--addr with the admin listener (7401 unless configured), --balancer with the client listener \
                         (7400), https:// where it speaks TLS; metrics (7402) are for a browser or curl";

/// The exit codes; closed, and part of what scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The reader of stdout has gone: nobody is left to tell, and nothing went wrong.
    Closed,
    Failed,
    Usage,
    NotFound,
    Unreachable,
    TimedOut,
    Denied,
    Config,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::TimedOut => 5,
            Self::Denied => 6,
            Self::Config => 78,
        }
    }
}

/// Why a command did not do what it was asked, in one line, and the exit code that says so to scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    text: String,
    next: Option<String>,
}

impl Failure {
    /// A failure in words for a person.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), next: None }
    }

    /// The same, with the command that helps from here.
    pub(crate) fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }

    /// No connection: not even one that was refused by a rule.
    pub(crate) fn unreachable(address: &str, cause: &str) -> Self {
        Self::new(Exit::Unreachable, format!("cannot reach the balancer at {address}: {cause}"))
            .next("lookaside serve, or another address (--addr, --balancer, LOOKASIDE_ADDR)")
    }

    /// A connection, but no answer to a first question: the metrics listener, say, speaks no HTTP/2.
    pub(crate) fn unanswered(address: &str, status: &Status) -> Self {
        let cause = std::error::Error::source(status).map_or_else(|| status.message().to_owned(), chain);
        Self::new(Exit::Unreachable, format!("no gRPC answer from {address}: {cause}")).next(LISTENERS)
    }

    /// What a balancer at `address` answered instead of what it was asked for.
    pub(crate) fn from_status(address: &str, status: &Status) -> Self {
        // Whoever does not speak our protocol, or breaks off in the middle of it, has not answered.
        if matches!(status.code(), Code::Unknown | Code::Internal) && is_made_here(status) {
            return Self::unanswered(address, status);
        }
        // Whatever listens there is healthy, and the wrong one.
        if status.code() == Code::Unimplemented {
            return Self::new(Exit::Usage, format!("what listens at {address} does not serve this")).next(LISTENERS);
        }
        let exit = match status.code() {
            Code::NotFound => Exit::NotFound,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unreachable,
            Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Exit::Usage,
            Code::Ok
            | Code::Unknown
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Internal
            | Code::DataLoss => Exit::Failed,
        };
        let said = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        let reason = status.get_details_error_info().map_or_else(String::new, |info| info.reason);
        let next = match reason.as_str() {
            "ENDPOINT_UNKNOWN" => "lookaside endpoints",
            "CLIENT_UNKNOWN" => "lookaside clients",
            _ => "lookaside services",
        };
        let reason = if reason.is_empty() { reason } else { format!(" [{reason}]") };
        match exit {
            Exit::Unreachable => Self::unreachable(address, &format!("{said}{reason}")),
            Exit::NotFound => Self::new(exit, format!("{said}{reason}")).next(next),
            Exit::Closed | Exit::Failed | Exit::Usage | Exit::TimedOut | Exit::Denied | Exit::Config => {
                Self::new(exit, format!("{said}{reason} (says the balancer at {address})"))
            }
        }
    }

    /// Says it on stderr, unless nobody needs to know, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.exit != Exit::Closed {
            eprintln!("error: {self}");
        }
        ExitCode::from(self.exit.code())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text may quote a peer: it must stay one line, and must not steer the terminal.
        f.write_str(&crate::output::clean(&self.text))?;
        match &self.next {
            Some(next) => write!(f, "; try: {}", crate::output::clean(next)),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Closed, "stdout was closed"),
            _ => Self::new(Exit::Failed, format!("cannot write to stdout: {error}")),
        }
    }
}

/// Whether nobody sent this status. One that the library made up has a source, or only words to tell it by.
fn is_made_here(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.message().starts_with("h2 protocol error")
}

/// An error with all its causes: the outermost one alone rarely says what happened.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some libraries repeat their cause in their own words already.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_exit_code_that_scripts_expect() {
        let cases = [
            (Code::NotFound, Exit::NotFound, 3),
            (Code::Unavailable, Exit::Unreachable, 4),
            (Code::DeadlineExceeded, Exit::Unreachable, 4),
            (Code::PermissionDenied, Exit::Denied, 6),
            (Code::Unauthenticated, Exit::Denied, 6),
            (Code::InvalidArgument, Exit::Usage, 2),
            (Code::Unknown, Exit::Failed, 1),
            (Code::Internal, Exit::Failed, 1),
            (Code::FailedPrecondition, Exit::Failed, 1),
        ];
        for (code, exit, number) in cases {
            let failure = Failure::from_status("127.0.0.1:7401", &Status::new(code, "words"));
            assert_eq!((failure.exit, failure.exit.code()), (exit, number), "{code:?}");
            assert!(failure.to_string().contains("words"));
        }
        let wrong = Failure::from_status("127.0.0.1:7400", &Status::unimplemented(""));
        assert_eq!(wrong.exit, Exit::Usage);
        assert!(wrong.to_string().contains("127.0.0.1:7400") && wrong.to_string().contains("--addr"), "{wrong}");
        for made_here in [Status::from_error("not HTTP/2".into()), Status::internal("h2 protocol error: http2 error")] {
            let broken = Failure::from_status("127.0.0.1:7400", &made_here);
            assert_eq!(broken.exit, Exit::Unreachable, "{broken}");
        }
        assert_eq!(Exit::TimedOut.code(), 5);
        assert_eq!(Exit::Config.code(), 78);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit.code(), 0);
    }

    #[test]
    fn an_error_is_one_line_with_the_next_step() {
        let failure = Failure::new(Exit::NotFound, "no service\n\u{1b}[31mx").next("lookaside services");
        assert_eq!(failure.to_string(), "no service  [31mx; try: lookaside services");
    }
}
