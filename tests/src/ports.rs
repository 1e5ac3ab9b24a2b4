//! Ports for nodes.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Ports that the kernel does not hand out to connections by itself. A node that is started again must find its ports
/// free, so they must not become the near end of somebody's connection while it is down. `quorun dev` puts its peers
/// 10,000 above; those are in this range as well when a port is in the lower part of it.
const FIRST: u16 = 12_000;
const LAST: u16 = 21_999;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// `count` ports in a row that are free on the loopback interface now, as well as those `above` them.
///
/// Nothing keeps them free: whoever finds one taken asks again.
///
/// # Panics
/// When there are no such ports.
#[must_use]
pub fn free(count: u16, above: &[u16]) -> u16 {
    let span = LAST - FIRST;
    // Where a process begins to look is random, so that two of them do not look at the same ports.
    let _ = NEXT.compare_exchange(0, random(span) + 1, Ordering::Relaxed, Ordering::Relaxed);
    for _ in 0..1000 {
        let offset = NEXT.fetch_add(count, Ordering::Relaxed) % (span - count);
        let first = FIRST + offset;
        let wanted = (first..first + count)
            .flat_map(|port| std::iter::once(port).chain(above.iter().map(move |up| port + up)));
        let held: Result<Vec<_>, _> = wanted
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))
            .collect();
        if held.is_ok() {
            return first;
        }
    }
    panic!("no {count} free ports in a row between {FIRST} and {LAST}");
}

fn random(below: u16) -> u16 {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    let mixed = (nanos ^ std::process::id()).wrapping_mul(0x9e37_79b1) >> 8;
    u16::try_from(mixed % u32::from(below)).unwrap_or(0)
}
