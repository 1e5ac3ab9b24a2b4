//! Chance: from the seed in a simulation, from the system elsewhere.

use std::convert::Infallible;

use rand::{Rng as _, TryRng};

use super::with;

/// Where openraft draws from.
pub(crate) struct Chance;

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(with(|world| world.rng.next_u32()).unwrap_or_else(|| rand::rng().next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(with(|world| world.rng.next_u64()).unwrap_or_else(|| rand::rng().next_u64()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if with(|world| world.rng.fill_bytes(bytes)).is_none() {
            rand::rng().fill_bytes(bytes);
        }
        Ok(())
    }
}
