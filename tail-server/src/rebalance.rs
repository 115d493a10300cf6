//! How sessions are spread over tails from outside: a file says how many this tail should have.
//!
//! Whoever spreads them writes a whole number into `--session-target-file`: an operator through an annotation of the
//! pod that Kubernetes projects into a file, or an administrator. An empty file, or none, is no target. Each time
//! the content changes, the sessions beyond the target are asked once to move to another tail, those with the
//! fewest positions first.
//!
//! A target refuses nobody: what comes later enters for as long as there is room. And it closes nothing: see
//! [`crate::live_sessions`]. A writer that sees too many sessions again writes a new number.

use crate::config::RebalanceConfig;
use crate::live_sessions::LiveSessions;
use crate::reload::{Reloaded, Reloads};

/// The largest file, in bytes: a number and white space around it.
const MAX_FILE_BYTES: u64 = 64;

/// Why a session target is not taken; the one before stays.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionTargetError {
    #[error(
        "expected the number of sessions that this tail should have at most, such as 12, or nothing for no \
         target; got {got:?}"
    )]
    Number { got: String },
}

/// Asks sessions to leave whenever the file of `config` changes, until `reloads` is dropped. `record` is told how many
/// were asked, where it was any.
///
/// Blocks for the first reading. A target that cannot be used is told and keeps no tail from starting.
pub(crate) fn watch_target(
    config: RebalanceConfig,
    sessions: LiveSessions,
    record: impl Fn(usize) + Send + 'static,
    reloads: &mut Reloads,
) {
    let RebalanceConfig { target_file, grace } = config;
    reloads.watch_optional(
        Reloaded::SessionTarget,
        target_file,
        MAX_FILE_BYTES,
        move |files| {
            let Some(target) = parse(&files[0])? else {
                tracing::info!("no session target");
                return Ok(());
            };
            let asked = sessions.leave_down_to(target, tokio::time::Instant::now() + grace);
            tracing::info!(target_sessions = target, asked, "session target");
            if asked > 0 {
                record(asked);
            }
            Ok(())
        },
    );
}

/// `None`: no target.
fn parse(content: &[u8]) -> Result<Option<usize>, SessionTargetError> {
    let text = content.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| SessionTargetError::Number {
        got: String::from_utf8_lossy(text).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::live_sessions::{LiveSession, Notice};

    const GRACE: Duration = Duration::from_secs(60);

    /// A tail with three sessions of 1, 2 and 3 positions, and its file.
    struct Rig {
        folder: tempfile::TempDir,
        reloads: Reloads,
        open: Vec<LiveSession>,
        recorded: mpsc::Receiver<usize>,
    }

    impl Rig {
        fn new(content: Option<&str>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            if let Some(content) = content {
                std::fs::write(folder.path().join("target"), content).unwrap();
            }
            let sessions = LiveSessions::new();
            let open = [1, 2, 3].map(|positions| {
                let session = sessions.enter(Instant::now());
                session.note_idle(positions, Instant::now());
                session
            });
            let (record, recorded) = mpsc::sync_channel(8);
            let mut reloads = Reloads::default();
            let config = RebalanceConfig {
                target_file: folder.path().join("target"),
                grace: GRACE,
            };
            let record = move |asked| record.send(asked).unwrap();
            watch_target(config, sessions, record, &mut reloads);
            let open = open.into();
            Self {
                folder,
                reloads,
                open,
                recorded,
            }
        }

        fn target(&self) -> PathBuf {
            self.folder.path().join("target")
        }

        fn write_and_look(&mut self, content: &str) {
            std::fs::write(self.target(), content).unwrap();
            self.look();
        }

        fn look(&mut self) {
            self.reloads.look(&crate::metrics::Metrics::new().unwrap());
        }

        /// How many have been asked since the last time, as it was recorded.
        fn asked(&self) -> Vec<usize> {
            self.recorded.try_iter().collect()
        }
    }

    #[tokio::test]
    async fn a_new_number_asks_the_surplus_once_with_the_deadline() {
        let mut rig = Rig::new(Some("3"));
        assert!(rig.asked().is_empty());
        let before = tokio::time::Instant::now();
        rig.write_and_look("1\n");
        assert_eq!(rig.asked(), [2]);
        let notices: Vec<_> = rig
            .open
            .iter_mut()
            .map(|session| session.notice().now_or_never())
            .collect();
        let [Some(Notice::Leave { deadline }), Some(_), None] = notices[..] else {
            panic!("{notices:?}")
        };
        assert!(deadline >= before + GRACE && deadline <= tokio::time::Instant::now() + GRACE);
        rig.look();
        assert!(rig.asked().is_empty());
    }

    #[tokio::test]
    async fn the_number_that_is_there_at_the_start_counts() {
        assert_eq!(Rig::new(Some("2")).asked(), [1]);
    }

    #[tokio::test]
    async fn no_file_and_an_empty_one_are_no_target_until_a_number_comes() {
        let mut rig = Rig::new(None);
        rig.write_and_look("");
        rig.write_and_look(" \n");
        assert!(rig.asked().is_empty());
        rig.write_and_look("2");
        assert_eq!(rig.asked(), [1]);
        std::fs::remove_file(rig.target()).unwrap();
        rig.look();
        assert!(rig.asked().is_empty());
        rig.write_and_look("0");
        assert_eq!(rig.asked(), [2]);
    }

    #[tokio::test]
    async fn what_is_no_number_asks_nobody_and_does_not_stop_the_watching() {
        let mut rig = Rig::new(Some("few"));
        for content in ["-1", "1.5", "2 3", "99999999999999999999999"] {
            rig.write_and_look(content);
        }
        rig.write_and_look(&"0".repeat(65));
        assert!(rig.asked().is_empty());
        rig.write_and_look("2");
        assert_eq!(rig.asked(), [1]);
    }

    #[test]
    fn the_refusal_says_what_came_and_what_would_be_right() {
        let message = parse(b"a dozen\n").unwrap_err().to_string();
        assert!(
            message.contains("a dozen") && message.contains("such as 12"),
            "{message}"
        );
        assert!(parse(&[0xff]).is_err());
    }
}
