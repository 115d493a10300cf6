//! A tail that is told to have fewer sessions asks some to leave, and forces none.

use headway_wire::message::server_frame::Message as Answer;
use tail_server::Timeouts;
use tempfile::TempDir;

use crate::auth::timeouts;
use crate::rig::{Client, Server, replace_file, token_ids};

const REBALANCED: &str = "headway_tail_sessions_rebalanced_total";
const TAKEN: &str = "headway_tail_reloads_total{result=\"ok\",what=\"session_target\"}";
const FAILED: &str = "headway_tail_reloads_total{result=\"failed\",what=\"session_target\"}";

/// Seconds that sessions are given.
const GRACE: &str = "45";

/// A server with sessions of these numbers of positions, and the file of its target.
struct Rig {
    folder: TempDir,
    server: Server,
    sessions: Vec<(Client, usize)>,
}

impl Rig {
    async fn new(positions: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let options = [
            "--session-target-file",
            path.to_str().unwrap(),
            "--rebalance-seconds",
            GRACE,
        ];
        let timeouts: Timeouts = timeouts();
        let server = Server::start_with(&options, timeouts).await;
        let mut sessions = Vec::new();
        for &count in positions {
            let mut client = server.session(0).await;
            client.send(token_ids(0, &vec![5; count], true)).await;
            assert_eq!(client.result().await.positions as usize, count);
            sessions.push((client, count));
        }
        Self {
            folder,
            server,
            sessions,
        }
    }

    fn write(&self, content: &str) {
        replace_file(self.folder.path().join("target"), content);
    }

    /// The session is asked to leave now, and goes on.
    async fn is_asked(&mut self, index: usize) {
        let (client, positions) = &mut self.sessions[index];
        match client.answer().await {
            Some(Answer::GoAway(go_away)) => {
                let deadline_ms = go_away.deadline_ms;
                assert!((30_000..=45_000).contains(&deadline_ms), "{deadline_ms}");
                let reason = &go_away.reason;
                assert!(reason.contains("more sessions than its part"), "{reason}");
            }
            other => panic!("expected GoAway, got {other:?}"),
        }
        goes_on(client, positions).await;
    }

    async fn goes_on(&mut self, index: usize) {
        let (client, positions) = &mut self.sessions[index];
        goes_on(client, positions).await;
    }
}

/// Step after step is answered, and nothing else is said.
async fn goes_on(client: &mut Client, positions: &mut usize) {
    for _ in 0..8 {
        client.send(token_ids(*positions, &[7], true)).await;
        *positions += 1;
        assert_eq!(client.result().await.positions as usize, *positions);
    }
}

#[tokio::test]
async fn the_surplus_is_asked_to_leave_those_with_the_fewest_positions_first() {
    let mut rig = Rig::new(&[30, 11, 25, 5]).await;
    rig.write("2\n");
    rig.is_asked(3).await;
    rig.is_asked(1).await;
    rig.server.wait_for_metric(REBALANCED, 2.0).await;
    for staying in [0, 2] {
        rig.goes_on(staying).await;
    }
    assert_eq!(rig.server.metric(REBALANCED).await, 2.0);
    assert_eq!(rig.server.metric("headway_tail_sessions").await, 4.0);
    assert_eq!(rig.server.metric("headway_tail_draining").await, 0.0);
    assert_eq!(rig.server.get("/readyz").await.status(), 200);

    // A target refuses nobody, and who has been asked is not asked again.
    let late = rig.server.session(0).await;
    rig.sessions.push((late, 0));
    rig.write("1");
    rig.is_asked(4).await;
    rig.is_asked(2).await;
    rig.server.wait_for_metric(REBALANCED, 4.0).await;
    for index in [0, 1, 3] {
        rig.goes_on(index).await;
    }
}

#[tokio::test]
async fn a_target_that_is_not_exceeded_asks_nobody() {
    let mut rig = Rig::new(&[10, 20]).await;
    rig.write("2");
    rig.server.wait_for_metric(TAKEN, 1.0).await;
    rig.write("100");
    rig.server.wait_for_metric(TAKEN, 2.0).await;
    // No target at all.
    rig.write("");
    rig.server.wait_for_metric(TAKEN, 3.0).await;
    for index in 0..2 {
        rig.goes_on(index).await;
    }
    assert_eq!(rig.server.metric(REBALANCED).await, 0.0);
}

#[tokio::test]
async fn content_that_is_no_number_is_counted_and_changes_nothing() {
    let mut rig = Rig::new(&[10, 20]).await;
    for (count, content) in (1_u8..).zip(["none at all", "-1", "1.5", "1 2", "1,", "\u{0}"]) {
        rig.write(content);
        rig.server.wait_for_metric(FAILED, f64::from(count)).await;
    }
    for index in 0..2 {
        rig.goes_on(index).await;
    }
    assert_eq!(rig.server.metric(REBALANCED).await, 0.0);
    assert_eq!(rig.server.metric(TAKEN).await, 0.0);
    // And the next good one is taken.
    rig.write("1");
    rig.is_asked(0).await;
    rig.server.wait_for_metric(REBALANCED, 1.0).await;
    assert_eq!(rig.server.metric(TAKEN).await, 1.0);
    rig.goes_on(1).await;
}

#[tokio::test]
async fn a_target_of_none_asks_everybody_and_all_may_stay() {
    let mut rig = Rig::new(&[3, 6, 9]).await;
    rig.write("0");
    for index in 0..3 {
        rig.is_asked(index).await;
    }
    assert_eq!(rig.server.metric(REBALANCED).await, 3.0);
    rig.server.session(0).await;
}
