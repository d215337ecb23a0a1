//! Who may order: whoever is on the balancer's own machine, and whoever shows the token. Reading is open to all who can
//! connect; who can is for TLS and the network to say.

use std::{net::SocketAddr, sync::Arc};

use lookaside_tls::{Error, LOOK_PERIOD, Look, Material, Reloading};
use subtle::ConstantTimeEq as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, metadata::MetadataMap};

use crate::{
    config,
    convert::refused,
    limits::{TOKEN_BYTES_MAX, TOKEN_BYTES_MIN},
};

/// What a word of operators begins with.
const SCHEME: &str = "Bearer ";

/// The token of operators, as its file has it now.
#[derive(Debug, Clone)]
pub(crate) struct Token(Arc<Reloading<Vec<u8>>>);

impl Token {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or is too short to be a secret.
    pub(crate) fn load(token: &config::Token) -> Result<Self, Error> {
        let (material, place) = match token {
            config::Token::File(path) => (Material::File(path.clone()), path.display().to_string()),
            config::Token::Text(text) => {
                (Material::Text(text.clone().into_bytes()), "LOOKASIDE_ADMIN_TOKEN".to_owned())
            }
        };
        let make = move |texts: &[Vec<u8>]| parse(&place, texts.first().map_or(&[], Vec::as_slice));
        Ok(Self(Arc::new(Reloading::load("token of operators", vec![material], make)?)))
    }

    /// Looks at its file once a second, until `stop` is cancelled.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LOOK_PERIOD) => {}
            }
            let token = Arc::clone(&self.0);
            // A disk that hangs is not to stop anybody else; an error means that the runtime ends.
            if let Ok(Look::Refused) = tokio::task::spawn_blocking(move || token.look()).await {
                tracing::error!(
                    "there is no token of operators: orders from other machines are refused until its file has one"
                );
            }
        }
    }

    /// Whether its file has no token any more: whoever takes it away means that the one before is no longer good.
    fn is_void(&self) -> bool {
        self.0.refused().is_some()
    }

    fn is(&self, shown: &[u8]) -> bool {
        // In a time that does not tell how much of it was right.
        self.0.current().ct_eq(shown).into()
    }
}

fn parse(place: &str, text: &[u8]) -> Result<Vec<u8>, Error> {
    let malformed = |reason: String| Error::Malformed { place: place.to_owned(), reason };
    let token = text.trim_ascii();
    if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
        let reason =
            format!("a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters; try: openssl rand -hex 32");
        return Err(malformed(reason));
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(malformed("a token is one word of ASCII characters".to_owned()));
    }
    Ok(token.to_vec())
}

/// Whether a request that orders something may.
pub(super) fn may_order(token: Option<&Token>, peer: Option<SocketAddr>, metadata: &MetadataMap) -> Result<(), Status> {
    // Where a request comes from must be known to be trusted.
    if peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
        return Ok(());
    }
    let denied = |reason, words: &str| Err(refused(Code::PermissionDenied, reason, words, &[]));
    let Some(token) = token else {
        let words = "orders are taken from the balancer's own machine alone, since it has no token for others \
                     (admin.token_file, LOOKASIDE_ADMIN_TOKEN)";
        return denied("LOOPBACK_ONLY", words);
    };
    if token.is_void() {
        return denied("TOKEN_VOID", "the balancer has no token of operators any more: its file is gone or has none");
    }
    let shown = metadata.get("authorization").map(|value| value.as_bytes());
    match shown.and_then(|value| value.strip_prefix(SCHEME.as_bytes())) {
        None => denied("TOKEN_MISSING", "orders from another machine need the token of operators (--token-file)"),
        Some(shown) if token.is(shown) => Ok(()),
        Some(_) => denied("TOKEN_WRONG", "this is not the token of operators"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn asked(token: Option<&str>, peer: Option<&str>, shown: Option<&str>) -> String {
        let token = token.map(|text| Token::load(&config::Token::Text(text.to_owned())).unwrap());
        let mut metadata = MetadataMap::new();
        if let Some(shown) = shown {
            metadata.insert("authorization", shown.parse().unwrap());
        }
        match may_order(token.as_ref(), peer.map(|peer| peer.parse().unwrap()), &metadata) {
            Ok(()) => "yes".to_owned(),
            Err(status) => {
                use tonic_types::StatusExt as _;
                assert_eq!(status.code(), Code::PermissionDenied);
                status.get_details_error_info().unwrap().reason
            }
        }
    }

    #[test]
    fn orders_from_elsewhere_need_the_token_and_those_from_here_do_not() {
        let right = format!("Bearer {SECRET}");
        for here in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(asked(None, Some(here), None), "yes");
            assert_eq!(asked(Some(SECRET), Some(here), None), "yes");
        }
        for elsewhere in [Some("10.0.0.7:1"), Some("[2001:db8::1]:1"), None] {
            assert_eq!(asked(None, elsewhere, Some(&right)), "LOOPBACK_ONLY");
            assert_eq!(asked(Some(SECRET), elsewhere, None), "TOKEN_MISSING");
            assert_eq!(asked(Some(SECRET), elsewhere, Some(SECRET)), "TOKEN_MISSING");
            assert_eq!(asked(Some(SECRET), elsewhere, Some("Bearer ")), "TOKEN_WRONG");
            assert_eq!(asked(Some(SECRET), elsewhere, Some("Bearer 0123456789abcdeF")), "TOKEN_WRONG");
            assert_eq!(asked(Some(SECRET), elsewhere, Some(&right)), "yes");
        }
    }

    /// Waits until a request from elsewhere is answered so.
    async fn wait_answered(token: &Token, wanted: &str) {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
        let answered = async {
            loop {
                use tonic_types::StatusExt as _;
                let answer = may_order(Some(token), None, &metadata);
                let reason = answer.map_or_else(|s| s.get_details_error_info().unwrap().reason, |()| "yes".to_owned());
                if reason == wanted {
                    return;
                }
                sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::testing::PATIENCE, answered).await.unwrap_or_else(|_| panic!("never {wanted}"));
    }

    #[tokio::test]
    async fn a_token_whose_file_goes_or_is_emptied_is_good_for_nothing_until_there_is_one_again() {
        let path = std::env::temp_dir().join(format!("lookaside-token-{}", std::process::id()));
        std::fs::write(&path, SECRET).unwrap();
        let (token, stop) = (Token::load(&config::Token::File(path.clone())).unwrap(), CancellationToken::new());
        tokio::spawn(token.clone().watch(stop.clone()));
        wait_answered(&token, "yes").await;
        std::fs::remove_file(&path).unwrap();
        wait_answered(&token, "TOKEN_VOID").await;
        std::fs::write(&path, SECRET).unwrap();
        wait_answered(&token, "yes").await;
        std::fs::write(&path, "").unwrap();
        wait_answered(&token, "TOKEN_VOID").await;
        std::fs::write(&path, "fedcba9876543210").unwrap();
        wait_answered(&token, "TOKEN_WRONG").await;
        stop.cancel();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_secret_is_no_token() {
        assert_eq!(parse("f", b" 0123456789abcdef\n").unwrap(), b"0123456789abcdef");
        for text in ["", "short", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
            assert!(parse("f", text.as_bytes()).unwrap_err().to_string().starts_with("f: a token"), "{text}");
        }
        assert!(parse("f", &[b'x'; TOKEN_BYTES_MAX + 1]).is_err());
        assert!(!format!("{:?}", config::Token::Text(SECRET.to_owned())).contains(SECRET));
    }
}
