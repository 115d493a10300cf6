use super::ledger::MIN_REMEMBERED;
use super::*;
use crate::auth::{CredentialSource, device};
use crate::config::Quota;

fn tenant(name: &str) -> Tenant {
    Tenant::named(CredentialSource::Key, name).unwrap()
}

/// 0 is no limit.
fn quota(max_sessions: usize, tokens_per_second: u32) -> Quota {
    Quota {
        max_sessions: Some(max_sessions).filter(|&limit| limit > 0),
        tokens_per_second: Some(tokens_per_second).filter(|&limit| limit > 0),
    }
}

fn tenants(max_sessions: usize, tokens_per_second: u32) -> Tenants {
    Tenants::new(TenantLimits {
        tenant: quota(max_sessions, tokens_per_second),
        device: Quota::default(),
    })
}

/// With limits for devices alone.
fn devices(max_sessions: usize, tokens_per_second: u32) -> Tenants {
    Tenants::new(TenantLimits {
        tenant: Quota::default(),
        device: quota(max_sessions, tokens_per_second),
    })
}

fn enter(tenants: &Tenants, name: &str, now: Instant) -> TenantSession {
    tenants
        .enter(&tenant(name), None, now)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn refused(tenants: &Tenants, name: &str, now: Instant) -> TenantLimitError {
    match tenants.enter(&tenant(name), None, now) {
        Ok(_) => panic!("entered"),
        Err(error) => error,
    }
}

/// Enters with the device `name` of the tenant `a`.
fn enter_device(
    tenants: &Tenants,
    name: &str,
    now: Instant,
) -> Result<TenantSession, TenantLimitError> {
    let tenant = tenant("a");
    let device = device(&tenant, name);
    tenants.enter(&tenant, Some(&device), now)
}

fn entered(tenants: &Tenants, name: &str, now: Instant) -> TenantSession {
    enter_device(tenants, name, now).unwrap_or_else(|error| panic!("{error}"))
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
    assert_eq!(tenants.used().tenants.len(), 1);
}

#[test]
fn tenants_and_devices_with_debts_are_forgotten_once_they_are_paid() {
    let tenants = Tenants::new(TenantLimits {
        tenant: quota(0, 10),
        device: quota(0, 10),
    });
    let (now, names) = (Instant::now(), 0..1000);
    for name in names {
        let tenant = tenant(&format!("t{name}"));
        let device = device(&tenant, "phone");
        let session = tenants.enter(&tenant, Some(&device), now);
        let session = session.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(session.charge(100, now), Ok(Duration::ZERO));
    }
    let remembered = |tenants: &Tenants| {
        let used = tenants.used();
        [used.tenants.len(), used.devices.len()]
    };
    assert_eq!(remembered(&tenants), [1000; 2]);
    let _later = entered(&tenants, "phone", now + 11 * SECOND);
    assert!(
        remembered(&tenants)
            .iter()
            .all(|&len| len <= MIN_REMEMBERED)
    );
}

#[test]
fn a_device_with_too_many_sessions_is_refused_and_another_of_its_tenant_is_not() {
    let (tenants, now) = (devices(1, 0), Instant::now());
    let first = entered(&tenants, "phone", now);
    let refused = enter_device(&tenants, "phone", now).err();
    assert!(matches!(
        refused,
        Some(TenantLimitError::DeviceSessions {
            max_sessions: 1,
            retry_after_ms: 1..
        })
    ));
    let _other = entered(&tenants, "tablet", now);
    // The device of the same name of another tenant is another.
    let other = tenant("b");
    let others_phone = device(&other, "phone");
    assert!(tenants.enter(&other, Some(&others_phone), now).is_ok());
    drop(first);
    let _again = entered(&tenants, "phone", now);
}

#[test]
fn a_device_pays_for_all_its_sessions_and_for_nobody_elses() {
    let (tenants, now) = (devices(0, 10), Instant::now());
    let phone = [
        entered(&tenants, "phone", now),
        entered(&tenants, "phone", now),
    ];
    let tablet = entered(&tenants, "tablet", now);
    assert_eq!(phone[0].charge(100, now), Ok(Duration::ZERO));
    assert_eq!(phone[1].charge(10, now), Ok(SECOND));
    assert_eq!(tablet.charge(100, now), Ok(Duration::ZERO));
    let expected = TenantLimitError::DeviceRate {
        tokens_per_second: 10,
        retry_after_ms: 1000,
    };
    assert_eq!(enter_device(&tenants, "phone", now).err(), Some(expected));
    assert_eq!(
        phone[0].charge(400, now),
        Err(TenantLimitError::DeviceRate {
            tokens_per_second: 10,
            retry_after_ms: 41_000,
        })
    );
}

#[test]
fn a_device_does_not_get_rid_of_its_debt_by_closing_its_sessions() {
    let (tenants, now) = (devices(0, 10), Instant::now());
    let session = entered(&tenants, "phone", now);
    assert_eq!(session.charge(130, now), Ok(3 * SECOND));
    drop(session);
    assert!(enter_device(&tenants, "phone", now).is_err());
    let _paid = entered(&tenants, "phone", now + 3 * SECOND);
}

#[test]
fn rows_are_charged_to_the_device_and_to_its_tenant_and_the_longer_wait_counts() {
    let tenants = Tenants::new(TenantLimits {
        tenant: quota(0, 20),
        device: quota(0, 10),
    });
    let now = Instant::now();
    let (phone, tablet) = (
        entered(&tenants, "phone", now),
        entered(&tenants, "tablet", now),
    );
    // Of the device's ten seconds of ten rows, and of the tenant's ten seconds of twenty.
    assert_eq!(phone.charge(120, now), Ok(2 * SECOND));
    assert_eq!(tablet.charge(100, now), Ok(SECOND));
    assert_eq!(tablet.charge(20, now), Ok(2 * SECOND));
    assert_eq!(phone.charge(20, now), Ok(4 * SECOND));
}

#[test]
fn a_tenants_limit_holds_for_all_its_devices_and_a_refused_device_takes_nothing() {
    let tenants = Tenants::new(TenantLimits {
        tenant: quota(2, 0),
        device: quota(1, 0),
    });
    let now = Instant::now();
    let phone = entered(&tenants, "phone", now);
    let _tablet = entered(&tenants, "tablet", now);
    let refused = enter_device(&tenants, "laptop", now).err();
    assert!(matches!(refused, Some(TenantLimitError::Sessions { .. })));
    assert!(enter_device(&tenants, "phone", now).is_err());
    drop(phone);
    let _laptop = entered(&tenants, "laptop", now);
    assert_eq!(tenants.used().devices.len(), 2);
}

#[test]
fn who_is_no_device_has_the_tenants_limit_alone() {
    let (tenants, now) = (devices(1, 20), Instant::now());
    let sessions: Vec<TenantSession> = (0..100).map(|_| enter(&tenants, "a", now)).collect();
    assert_eq!(sessions[0].charge(1_000_000, now), Ok(Duration::ZERO));
    assert_eq!(tenants.used().devices.len(), 0);
}

#[test]
fn a_device_is_forgotten_with_its_last_session() {
    let (tenants, now) = (devices(2, 0), Instant::now());
    let sessions = [
        entered(&tenants, "phone", now),
        entered(&tenants, "phone", now),
    ];
    assert_eq!(tenants.used().devices.len(), 1);
    drop(sessions);
    assert_eq!(tenants.used().devices.len(), 0);
    assert_eq!(tenants.used().tenants.len(), 0);
}

#[test]
fn one_session_at_the_lowest_rate_gets_on() {
    let (tenants, mut now) = (tenants(0, MIN_TOKENS_PER_SECOND), Instant::now());
    let session = enter(&tenants, "a", now);
    for _ in 0..8 {
        now += session.charge(512, now).unwrap();
    }
}
