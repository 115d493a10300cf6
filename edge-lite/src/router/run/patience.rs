//! How long the tail is waited for where the device can go on.

use std::time::Duration;

use tokio::time::timeout;

use crate::config::ReconnectPolicy;
use crate::error::{Error, TailError};
use crate::session::SessionConfig;

/// What a position that the tail lacks adds to the patience for its next token.
pub(super) const PATIENCE_PER_POSITION: Duration = Duration::from_millis(20);

/// A session that may give up soon, because the device can go on. One try is made at once: behind a Service another
/// pod is most likely ready.
pub(super) fn impatient(config: &SessionConfig, patience: Duration) -> SessionConfig {
    let mut config = config.clone();
    config.dialer.connect_timeout = config.dialer.connect_timeout.min(patience);
    config.reconnect = ReconnectPolicy {
        max_attempts: config.reconnect.max_attempts.min(1),
        deadline: config.reconnect.deadline.min(patience),
        starting_deadline: config.reconnect.starting_deadline.min(patience),
        ..config.reconnect
    };
    config
}

/// `tokens`, or the loss of a tail that does not give them in time.
pub(super) async fn within<T>(
    after: Option<Duration>,
    tokens: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(after) = after else {
        return tokens.await;
    };
    let late = || TailError::Timeout {
        what: "token of the tail",
        after,
    };
    timeout(after, tokens)
        .await
        .unwrap_or_else(|_| Err(late().into()))
}

/// The error with its causes, in one line.
pub(super) fn sentence(error: &TailError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors tell their causes themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
