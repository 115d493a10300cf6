//! A device for tests: real arithmetic, and what goes wrong in the next step is chosen from outside.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use headway_model::ForwardError;

use super::cpu::CpuDevice;
use super::device::{Device, DeviceError, Meanwhile, Member, StepRun};

/// More than any test chooses ahead.
const MAX_CHOSEN: usize = 8;

/// What goes wrong in a step, after the caches have been written.
pub(crate) enum Fault {
    Error,
    Panic,
    /// Too few samples.
    Samples,
    /// Says that it has begun, and then nothing goes on before the sender of the second one has gone.
    Hang(SyncSender<()>, Receiver<()>),
}

/// The first step takes the first fault, and so on; steps without one are good.
pub(crate) struct FaultyDevice {
    device: CpuDevice,
    faults: Receiver<Fault>,
}

impl FaultyDevice {
    pub(crate) fn new(device: CpuDevice) -> (Self, SyncSender<Fault>) {
        let (choose, faults) = sync_channel(MAX_CHOSEN);
        (Self { device, faults }, choose)
    }
}

impl Device for FaultyDevice {
    fn run(
        &mut self,
        members: &mut [Member<'_>],
        started: Instant,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<StepRun, DeviceError> {
        // As a device does that computes by itself.
        while meanwhile(&mut |_, _| None) {}
        let mut run = self.device.run(members, started, meanwhile)?;
        match self.faults.try_recv() {
            Err(_) => {}
            Ok(Fault::Error) => {
                let error = ForwardError::TokenId {
                    token_id: 0,
                    vocab_size: 0,
                };
                return Err(error.into());
            }
            Ok(Fault::Panic) => panic!("chosen by a test"),
            Ok(Fault::Samples) => drop(run.samples.pop()),
            Ok(Fault::Hang(begun, go_on)) => {
                begun.send(()).unwrap();
                // An error is what is waited for.
                let _ = go_on.recv();
            }
        }
        Ok(run)
    }
}
