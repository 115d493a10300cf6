use super::*;
use crate::auth::CredentialSource;

fn tenant(name: &str) -> Tenant {
    Tenant::named(CredentialSource::Key, name).unwrap()
}

fn tenants(max_sessions: usize, tokens_per_second: u32) -> Tenants {
    Tenants::new(TenantLimits {
        max_sessions: Some(max_sessions).filter(|&limit| limit > 0),
        tokens_per_second: Some(tokens_per_second).filter(|&limit| limit > 0),
    })
}

fn enter(tenants: &Tenants, name: &str, now: Instant) -> TenantSession {
    tenants
        .enter(&tenant(name), now)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn refused(tenants: &Tenants, name: &str, now: Instant) -> TenantLimitError {
    match tenants.enter(&tenant(name), now) {
        Ok(_) => panic!("entered"),
        Err(error) => error,
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_tenant_with_too_many_sessions_is_refused_and_another_is_not() {
    let (tenants, now) = (tenants(2, 0), Instant::now());
    let first = enter(&tenants, "a", now);
    let _second = enter(&tenants, "a", now);
    assert!(matches!(
        refused(&tenants, "a", now),
        TenantLimitError::Sessions {
            max_sessions: 2,
            retry_after_ms: 1..
        }
    ));
    let _other = enter(&tenants, "b", now);
    drop(first);
    let _again = enter(&tenants, "a", now);
}

#[test]
fn a_burst_goes_through_and_what_is_more_waits_as_long_as_it_costs() {
    let (tenants, now) = (tenants(0, 10), Instant::now());
    let session = enter(&tenants, "a", now);
    // Ten seconds of ten rows.
    assert_eq!(session.charge(100, now), Ok(Duration::ZERO));
    assert_eq!(session.charge(5, now), Ok(SECOND / 2));
    assert_eq!(session.charge(5, now), Ok(SECOND));
    // After the wait there is room for what the time since then has brought.
    assert_eq!(session.charge(0, now + SECOND), Ok(Duration::ZERO));
    assert_eq!(session.charge(10, now + 3 * SECOND), Ok(Duration::ZERO));
}

#[test]
fn an_idle_tenant_saves_no_more_than_one_burst() {
    let (tenants, now) = (tenants(0, 10), Instant::now());
    let session = enter(&tenants, "a", now);
    let later = now + 3600 * SECOND;
    assert_eq!(session.charge(100, later), Ok(Duration::ZERO));
    assert_eq!(session.charge(10, later), Ok(SECOND));
}

#[test]
fn all_sessions_of_a_tenant_pay_together_and_nobody_else_does() {
    let (tenants, now) = (tenants(0, 10), Instant::now());
    let (first, second) = (enter(&tenants, "a", now), enter(&tenants, "a", now));
    let other = enter(&tenants, "b", now);
    assert_eq!(first.charge(100, now), Ok(Duration::ZERO));
    assert_eq!(second.charge(10, now), Ok(SECOND));
    assert_eq!(other.charge(100, now), Ok(Duration::ZERO));
}

#[test]
fn a_tenant_in_debt_opens_nothing_until_it_has_paid() {
    let (tenants, now) = (tenants(0, 10), Instant::now());
    let session = enter(&tenants, "a", now);
    assert_eq!(session.charge(130, now), Ok(3 * SECOND));
    drop(session);
    // It is remembered although it has no session.
    let expected = TenantLimitError::Rate {
        tokens_per_second: 10,
        retry_after_ms: 3000,
    };
    assert_eq!(refused(&tenants, "a", now), expected);
    let _paid = enter(&tenants, "a", now + 3 * SECOND);
}

#[test]
fn a_wait_that_is_too_long_ends_the_session_with_the_time_it_takes() {
    let (tenants, now) = (tenants(0, 10), Instant::now());
    let session = enter(&tenants, "a", now);
    let error = session.charge(410, now).unwrap_err();
    assert_eq!(error.retry_after_ms(), 31_000);
}

#[test]
fn without_limits_nothing_is_counted_against_anybody() {
    let (tenants, now) = (tenants(0, 0), Instant::now());
    let sessions: Vec<TenantSession> = (0..1000).map(|_| enter(&tenants, "a", now)).collect();
    assert_eq!(sessions[0].charge(1_000_000, now), Ok(Duration::ZERO));
}

#[test]
fn tenants_without_sessions_and_debts_are_forgotten() {
    let (tenants, now) = (tenants(1, 10), Instant::now());
    let _kept = enter(&tenants, "kept", now);
    for index in 0..1000 {
        drop(enter(&tenants, &format!("t{index}"), now));
    }
    assert!(tenants.used.lock().unwrap().len() <= MIN_REMEMBERED);
}

#[test]
fn one_session_at_the_lowest_rate_gets_on() {
    let (tenants, mut now) = (tenants(0, MIN_TOKENS_PER_SECOND), Instant::now());
    let session = enter(&tenants, "a", now);
    for _ in 0..8 {
        now += session.charge(512, now).unwrap();
    }
}
