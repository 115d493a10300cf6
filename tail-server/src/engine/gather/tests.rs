mod closed_loop;

use super::*;

const US: Duration = Duration::from_micros(1);

/// Steps take 4 ms and 10 us a row.
fn on_a_gpu() -> Gather {
    let mut gather = Gather::default();
    for rows in [1_u32, 64].repeat(4) {
        gather.ended(rows as usize, (4000 + 10 * rows) * US);
    }
    gather
}

/// Sessions that were answered at `at` and usually come 400 us later, give or take nothing.
fn expects(gather: &mut Gather, sessions: std::ops::Range<u64>, at: Instant) {
    for session in sessions.map(SessionId) {
        for turn in (1..=64).rev() {
            let answered = at - turn * Duration::from_millis(10);
            gather.answered(session, answered);
            gather.came(session, answered + 400 * US, false);
        }
        gather.answered(session, at);
    }
}

#[test]
fn a_few_rows_wait_for_many_that_are_due_and_begin_when_they_are_there() {
    let (mut gather, now) = (on_a_gpu(), Instant::now());
    expects(&mut gather, 0..32, now);
    let until = gather.wait_until(4, 128, now + 100 * US).unwrap();
    assert!((until - now).abs_diff(400 * US) < US, "{:?}", until - now);
    for session in (0..32).map(SessionId) {
        gather.came(session, now + 300 * US, false);
    }
    assert_eq!(gather.wait_until(36, 128, now + 300 * US), None);
    assert_eq!(gather.began(now + 310 * US), Some(210 * US));
    assert_eq!(gather.began(now + 310 * US), None);
}

#[test]
fn many_rows_do_not_wait_for_one() {
    let (mut gather, now) = (on_a_gpu(), Instant::now());
    expects(&mut gather, 0..1, now);
    assert_eq!(gather.wait_until(63, 128, now), None);
    assert_eq!(gather.began(now), None);
    // Unless it is all but there.
    assert!(gather.wait_until(63, 128, now + 380 * US).is_some());
}

#[test]
fn nobody_is_waited_for_who_is_late_has_gone_or_has_no_place() {
    let (mut gather, now) = (on_a_gpu(), Instant::now());
    expects(&mut gather, 0..8, now);
    assert!(gather.wait_until(4, 128, now).is_some());
    assert_eq!(gather.wait_until(4, 4, now), None);
    assert_eq!(gather.wait_until(4, 128, now + 500 * US), None);
    let mut gather = on_a_gpu();
    expects(&mut gather, 0..8, now);
    (0..8).map(SessionId).for_each(|gone| gather.left(gone));
    assert_eq!(gather.wait_until(4, 128, now), None);
    expects(&mut gather, 0..8, now);
    gather.all_left();
    assert_eq!(gather.wait_until(4, 128, now), None);
}

#[test]
fn nobody_is_waited_for_before_there_is_something_to_go_by() {
    let now = Instant::now();
    let mut without_steps = Gather::default();
    expects(&mut without_steps, 0..8, now);
    assert_eq!(without_steps.wait_until(1, 128, now), None);
    let mut without_returns = on_a_gpu();
    (0..8).for_each(|session| without_returns.answered(SessionId(session), now));
    assert_eq!(without_returns.wait_until(1, 128, now), None);
}

#[test]
fn pauses_do_not_change_what_is_usual() {
    let (mut gather, now) = (on_a_gpu(), Instant::now());
    expects(&mut gather, 0..8, now);
    for session in (0..8).map(SessionId) {
        gather.came(session, now + 700 * US, true);
        gather.answered(session, now + 800 * US);
        gather.came(session, now + 2 * LONGEST_RETURN, false);
        gather.answered(session, now + 3 * LONGEST_RETURN);
    }
    let now = now + 3 * LONGEST_RETURN;
    let until = gather.wait_until(4, 128, now).unwrap();
    assert!((until - now).abs_diff(400 * US) < US, "{:?}", until - now);
}

#[test]
fn a_step_is_put_off_by_half_of_its_time_at_most_however_many_come() {
    let (mut gather, begun) = (on_a_gpu(), Instant::now());
    expects(&mut gather, 0..64, begun);
    let mut now = begun;
    for rows in 1_u32.. {
        // Each comes just before its time, and is followed by others who will.
        let Some(until) = gather.wait_until(rows as usize, 128, now) else {
            break;
        };
        let longest = (4000 + 10 * rows) * US / 2 + US;
        assert!(until <= begun + longest, "{rows} rows: {:?}", until - begun);
        now = until - US;
        let session = SessionId(u64::from(rows) - 1);
        gather.came(session, now, false);
        gather.answered(session, now);
    }
    assert!(now > begun);
}
