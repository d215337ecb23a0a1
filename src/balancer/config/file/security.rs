//! TLS, plaintext and the operators' token, as the file has them.

use std::path::PathBuf;

use lookaside_core::config::EndpointTls;
use lookaside_tls::ClientAuth;
use serde::Deserialize;

use super::{Problems, Spanned};
use crate::config::{AllowPlaintext, ListenerTls, Security, Token, problem::Code, value::Maybe};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsForm {
    client: Option<ListenerTlsForm>,
    admin: Option<ListenerTlsForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerTlsForm {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: Maybe<Auth>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Auth {
    Required,
    Optional,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminForm {
    token_file: Option<PathBuf>,
}

/// A listener that others may reach in plaintext.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Plaintext {
    Client,
    Admin,
}

/// How endpoints are connected to when they are checked.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EndpointTlsForm {
    enabled: Option<bool>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// What three parts of the file say together.
pub(super) fn security(
    tls: TlsForm,
    admin: AdminForm,
    allow_plaintext: &[Plaintext],
    problems: &mut Problems,
) -> Security {
    Security {
        client: tls.client.map(|form| form.tls(problems)),
        admin: tls.admin.map(|form| form.tls(problems)),
        allow_plaintext: AllowPlaintext {
            client: allow_plaintext.contains(&Plaintext::Client),
            admin: allow_plaintext.contains(&Plaintext::Admin),
        },
        token: admin.token_file.map(Token::File),
    }
}

impl ListenerTlsForm {
    fn tls(self, problems: &mut Problems) -> ListenerTls {
        if let Some(auth) = self.client_auth.as_ref().filter(|_| self.client_ca.is_none()) {
            let reason = "client_auth without `client_ca`: nobody is asked for a certificate";
            problems.add(auth.referenced, Code::NoEffect, reason);
        }
        ListenerTls {
            cert: self.cert,
            key: self.key,
            client_ca: self.client_ca,
            client_auth: match self.client_auth.map(|auth| auth.value) {
                Some(Auth::Optional) => ClientAuth::Optional,
                Some(Auth::Required) | None => ClientAuth::Required,
            },
        }
    }
}

impl EndpointTlsForm {
    /// Over what holds where the file is silent.
    pub(super) fn fill(form: &Maybe<Self>, to: &mut Option<EndpointTls>, problems: &mut Problems) {
        let Some(Spanned { value: form, referenced: at }) = form else { return };
        if form.enabled == Some(false) {
            *to = None;
            return;
        }
        let mut tls = to.take().unwrap_or_default();
        for (key, said) in [(&mut tls.ca, &form.ca), (&mut tls.cert, &form.cert), (&mut tls.key, &form.key)] {
            if let Some(said) = said {
                key.clone_from(said);
            }
        }
        if tls.ca.is_empty() {
            problems.add(*at, Code::MissingKey, "tls of endpoints needs `ca`, the file of the CA that signs them");
        }
        if tls.cert.is_empty() != tls.key.is_empty() {
            problems.add(*at, Code::MissingKey, "`cert` and `key` go together");
        }
        *to = Some(tls);
    }
}
