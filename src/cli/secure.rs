//! How a command connects: in plaintext or over TLS, and by which token it may order.

use std::path::PathBuf;

use lookaside_tls::{Tls, is_loopback};
use tonic::metadata::{Ascii, MetadataValue};

use crate::exit::{Exit, Failure, chain};

/// Understood by every command that connects to a balancer.
#[derive(clap::Args, Default)]
#[group(id = "secure")]
pub(crate) struct Args {
    /// Connect over TLS, and trust this CA (PEM)
    #[arg(long, global = true, env = "LOOKASIDE_CA", value_name = "FILE", help_heading = "Global options")]
    pub(crate) ca: Option<PathBuf>,
    /// Show this certificate (PEM) where one is wanted
    #[arg(long, global = true, env = "LOOKASIDE_CERT", value_name = "FILE", help_heading = "Global options")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key
    #[arg(long, global = true, env = "LOOKASIDE_KEY", value_name = "FILE", help_heading = "Global options")]
    pub(crate) key: Option<PathBuf>,
    /// Name that balancers have to show [default: the host of their address]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) tls_name: Option<String>,
    /// Token for orders to a balancer on another machine; sent over TLS alone
    #[arg(
        long,
        global = true,
        env = "LOOKASIDE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Global options",
        conflicts_with = "token_file"
    )]
    pub(crate) token: Option<String>,
    /// File that has it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) token_file: Option<PathBuf>,
}

impl Args {
    /// What connects over TLS; `None` without a CA. Fails when a file is of no use.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, Failure> {
        let tls = self.trust()?.map(|builder| match &self.tls_name {
            Some(name) => builder.expect_name(name.as_str()).build(),
            None => builder.build(),
        });
        tls.transpose().map_err(|error| usage(chain(&error)))
    }

    /// The same for endpoints, each of which has a name of its own.
    pub(crate) fn endpoint_tls(&self) -> Result<Option<Tls>, Failure> {
        self.trust()?.map(|builder| builder.build()).transpose().map_err(|error| usage(chain(&error)))
    }

    fn trust(&self) -> Result<Option<lookaside_tls::TlsBuilder>, Failure> {
        let builder = self.ca.as_ref().map(|ca| Tls::builder().ca_file(ca));
        match (builder, &self.cert, &self.key) {
            (Some(builder), Some(cert), Some(key)) => Ok(Some(builder.identity_files(cert, key))),
            (builder, None, None) => Ok(builder),
            (None, Some(_), Some(_)) => Err(usage("--cert and --key are of no use without --ca")),
            (_, Some(_), None) | (_, None, Some(_)) => Err(usage("--cert and --key go together")),
        }
    }

    /// How to connect to one admin listener, as it was named: `http://` before it is plaintext, `https://` is TLS, and
    /// without either it is TLS where there is a CA. Fails where plaintext was hardly meant.
    pub(crate) fn admin<'a>(&self, named: &'a str) -> Result<(&'a str, Option<Tls>), Failure> {
        if let Some(address) = named.strip_prefix("https://") {
            let tls = self.tls()?.ok_or_else(|| usage(format!("{named} needs the CA of the balancer: --ca FILE")))?;
            return Ok((address, Some(tls)));
        }
        match named.strip_prefix("http://") {
            Some(address) if self.ca.is_some() && !is_loopback(address) => {
                Err(usage(format!("--ca is for TLS, and {named} says plaintext: say {address}")))
            }
            Some(address) => Ok((address, None)),
            None => Ok((named, self.tls()?)),
        }
    }

    /// What an order carries. Fails rather than to let a token be read on the way.
    pub(crate) fn authorization(&self, address: &str, over_tls: bool) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| usage(format!("--token-file {}: {error}", path.display())))?,
            (None, None) => return Ok(None),
        };
        if !over_tls && is_loopback(address) {
            // None is needed there.
            return Ok(None);
        }
        if !over_tls {
            let text = format!("a token would be read on the way to {address}, which is asked in plaintext");
            return Err(usage(text).next("--ca FILE"));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| usage("the token has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_sent_where_it_could_be_read() {
        let args = Args { token: Some("0123456789abcdef".to_owned()), ..Args::default() };
        assert_eq!(args.authorization("127.0.0.1:7401", false).unwrap(), None);
        let refused = args.authorization("10.0.0.1:7401", false).unwrap_err();
        assert!(refused.exit == Exit::Usage && refused.to_string().contains("--ca"), "{refused}");
        let sent = args.authorization("10.0.0.1:7401", true).unwrap().unwrap();
        assert_eq!(sent.to_str().unwrap(), "Bearer 0123456789abcdef");
        assert!(!format!("{sent:?}").contains("0123"));
    }

    #[test]
    fn the_scheme_says_how_an_admin_listener_is_asked() {
        let plain = Args::default();
        assert!(
            plain.admin("http://10.0.0.1:7401").is_ok_and(|(address, tls)| address == "10.0.0.1:7401" && tls.is_none())
        );
        assert!(plain.admin("10.0.0.1:7401").is_ok_and(|(_, tls)| tls.is_none()));
        assert!(plain.admin("https://10.0.0.1:7401").unwrap_err().to_string().contains("--ca"));
        let with_ca = Args { ca: Some("/nowhere/ca.crt".into()), ..Args::default() };
        assert!(with_ca.admin("http://127.0.0.1:7401").is_ok_and(|(_, tls)| tls.is_none()));
        assert!(with_ca.admin("http://10.0.0.1:7401").unwrap_err().to_string().contains("says plaintext"));
        assert!(with_ca.admin("10.0.0.1:7401").unwrap_err().to_string().contains("/nowhere/ca.crt"));
        let half = Args { ca: Some("/nowhere/ca.crt".into()), cert: Some("c".into()), ..Args::default() };
        assert!(half.tls().unwrap_err().to_string().contains("go together"));
    }
}
