use futures_util::FutureExt as _;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MIN_IDLE: Duration = Duration::from_secs(30);

/// What the session has been told and has not heard of yet.
fn heard(session: &mut LiveSession) -> Option<Notice> {
    session.notice().now_or_never()
}

fn deadline() -> tokio::time::Instant {
    tokio::time::Instant::now() + 60 * SECOND
}

/// A session that has answered its last step, with `positions`, at `idle_since`.
fn idle(sessions: &LiveSessions, positions: usize, idle_since: Instant) -> LiveSession {
    let session = sessions.enter(idle_since);
    session.note_busy(positions);
    session.note_idle(positions, idle_since);
    session
}

#[test]
fn the_session_that_has_been_idle_longest_is_evicted_first_and_each_only_once() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let mut later = idle(&sessions, 1, start + SECOND);
    let mut first = idle(&sessions, 1000, start);
    let now = start + 2 * MIN_IDLE;
    assert!(sessions.evict_idlest(MIN_IDLE, now));
    assert_eq!(heard(&mut first), Some(Notice::Evicted));
    assert_eq!(heard(&mut later), None);
    assert!(sessions.evict_idlest(MIN_IDLE, now));
    assert_eq!(heard(&mut later), Some(Notice::Evicted));
    assert!(!sessions.evict_idlest(MIN_IDLE, now));
    assert_eq!(heard(&mut first), None);
}

#[test]
fn a_session_is_safe_until_it_has_been_idle_for_long_enough() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let mut session = idle(&sessions, 1, start);
    let almost = start + MIN_IDLE - Duration::from_millis(1);
    assert!(!sessions.evict_idlest(MIN_IDLE, almost));
    assert_eq!(heard(&mut session), None);
    assert!(sessions.evict_idlest(MIN_IDLE, start + MIN_IDLE));
}

#[test]
fn a_session_with_a_step_in_the_engine_is_never_idle() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let session = idle(&sessions, 1, start);
    session.note_busy(2);
    let much_later = start + 3600 * SECOND;
    assert!(!sessions.evict_idlest(MIN_IDLE, much_later));
    session.note_idle(2, much_later);
    assert!(!sessions.evict_idlest(MIN_IDLE, much_later + SECOND));
    assert!(sessions.evict_idlest(MIN_IDLE, much_later + MIN_IDLE));
}

#[test]
fn a_session_that_never_sent_a_step_is_idle_since_it_entered() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let mut session = sessions.enter(start);
    assert!(sessions.evict_idlest(MIN_IDLE, start + MIN_IDLE));
    assert_eq!(heard(&mut session), Some(Notice::Evicted));
}

#[test]
fn nobody_is_evicted_from_an_empty_tail_and_nobody_who_has_left() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    assert!(!sessions.evict_idlest(Duration::ZERO, start));
    drop(idle(&sessions, 1, start));
    assert!(!sessions.evict_idlest(Duration::ZERO, start + MIN_IDLE));
}

#[test]
fn those_with_the_fewest_positions_are_asked_to_leave_and_only_the_surplus() {
    let (sessions, now) = (LiveSessions::new(), Instant::now());
    let mut by_positions = [300, 100, 200].map(|positions| idle(&sessions, positions, now));
    let deadline = deadline();
    assert_eq!(sessions.leave_down_to(1, deadline), 2);
    let heard = by_positions.each_mut().map(heard);
    let leave = Some(Notice::Leave { deadline });
    assert_eq!(heard, [None, leave, leave]);
    assert_eq!(sessions.leave_down_to(1, deadline), 0);
}

#[test]
fn among_equals_a_session_between_its_steps_is_asked_before_one_with_a_step_in_the_engine() {
    let (sessions, now) = (LiveSessions::new(), Instant::now());
    let mut busy = sessions.enter(now);
    busy.note_busy(10);
    let mut idle = idle(&sessions, 10, now);
    assert_eq!(sessions.leave_down_to(1, deadline()), 1);
    assert!(heard(&mut idle).is_some() && heard(&mut busy).is_none());
}

#[test]
fn who_was_asked_to_leave_does_not_count_and_is_not_asked_again() {
    let (sessions, now) = (LiveSessions::new(), Instant::now());
    let mut stays = idle(&sessions, 1, now);
    assert_eq!(sessions.leave_down_to(0, deadline()), 1);
    assert!(heard(&mut stays).is_some());
    let mut newcomers = [2, 3].map(|positions| idle(&sessions, positions, now));
    assert_eq!(sessions.leave_down_to(1, deadline()), 1);
    assert_eq!(heard(&mut stays), None);
    let asked = newcomers.each_mut().map(|session| heard(session).is_some());
    assert_eq!(asked, [true, false]);
}

#[test]
fn a_target_that_is_met_asks_nobody() {
    let (sessions, now) = (LiveSessions::new(), Instant::now());
    let mut session = idle(&sessions, 1, now);
    assert_eq!(sessions.leave_down_to(1, deadline()), 0);
    assert_eq!(sessions.leave_down_to(usize::MAX, deadline()), 0);
    assert_eq!(heard(&mut session), None);
}

#[test]
fn who_was_asked_to_leave_and_stayed_may_still_be_evicted() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let mut session = idle(&sessions, 1, start);
    assert_eq!(sessions.leave_down_to(0, deadline()), 1);
    assert!(matches!(heard(&mut session), Some(Notice::Leave { .. })));
    assert!(sessions.evict_idlest(MIN_IDLE, start + MIN_IDLE));
    assert_eq!(heard(&mut session), Some(Notice::Evicted));
}

#[test]
fn an_eviction_overtakes_a_request_that_was_not_heard() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let mut session = idle(&sessions, 1, start);
    sessions.leave_down_to(0, deadline());
    assert!(sessions.evict_idlest(MIN_IDLE, start + MIN_IDLE));
    // And is not taken back by a later request.
    assert_eq!(sessions.leave_down_to(0, deadline()), 0);
    assert_eq!(heard(&mut session), Some(Notice::Evicted));
    assert_eq!(heard(&mut session), None);
}

#[tokio::test]
async fn a_notice_reaches_a_session_that_waits_and_survives_a_cancelled_wait() {
    let (sessions, now) = (LiveSessions::new(), Instant::now());
    let mut session = idle(&sessions, 1, now);
    {
        let wait = session.notice();
        tokio::pin!(wait);
        assert!(wait.as_mut().now_or_never().is_none());
        assert!(sessions.evict_idlest(Duration::ZERO, now));
        // Dropped here, although it has been woken.
    }
    assert_eq!(session.notice().await, Notice::Evicted);

    let mut waiting = idle(&sessions, 1, now);
    let waiting = tokio::spawn(async move { waiting.notice().await });
    tokio::task::yield_now().await;
    assert!(sessions.evict_idlest(Duration::ZERO, now));
    assert_eq!(waiting.await.unwrap(), Notice::Evicted);
}

#[test]
fn ten_thousand_sessions_leave_no_entry_behind() {
    let (sessions, start) = (LiveSessions::new(), Instant::now());
    let open: Vec<LiveSession> = (0..10_000)
        .map(|millis| idle(&sessions, 1, start + Duration::from_millis(millis)))
        .collect();
    assert!(sessions.evict_idlest(MIN_IDLE, start + 60 * SECOND));
    assert_eq!(sessions.leave_down_to(10, deadline()), 10_000 - 1 - 10);
    drop(open);
    assert!(lock(&sessions.table).sessions.is_empty());
}
