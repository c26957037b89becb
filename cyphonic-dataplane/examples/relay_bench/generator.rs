//! The packet source and the sink, both in the kernel: the same for whatever is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramFd, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use crate::cable::{Cable, END_PORT, FIRST_RECEIVER, PORT, RELAY, RELAY_MAC, WORLD_MAC, pin};
use crate::traffic::{CHANNEL_HEADER_LEN, HEAD_LEN, PAYLOAD, Template};

/// Frames that the kernel makes and sends at once.
const BATCH: u32 = 64;
/// Frames per system call when nothing holds the generator back.
const UNPACED: u32 = 1 << 14;

/// What packets to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) bindings: u32,
    /// How many packets of one binding follow each other.
    pub(crate) train: u32,
    /// Bytes of UDP payload, without a TURN channel's header.
    pub(crate) payload: u16,
    /// Whether they are for a TURN server.
    pub(crate) turn: bool,
    /// The UDP port they go to.
    pub(crate) port: u16,
}

impl Traffic {
    pub(crate) fn tunnel(bindings: u32, payload: u16) -> Self {
        Self { bindings, train: 1, payload, turn: false, port: PORT }
    }
}

/// The programs, loaded and attached at the world's end.
pub(crate) struct World {
    ebpf: Ebpf,
    frame: Vec<u8>,
    interface: u32,
}

/// What a run delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) offered: u64,
    pub(crate) elapsed: Duration,
}

/// What the sink has counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sunk {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) others: u64,
}

impl World {
    pub(crate) fn attach(cable: &Cable, objects: &Path, traffic: Traffic) -> Result<Self> {
        let mut ebpf = load(objects, traffic)?;
        let device = cable.world_device.clone();
        let (ebpf, interface) = cable.world.run(move || {
            let interface = index(&device)?;
            let sink = program(&mut ebpf, "bench_sink")?;
            sink.load()?;
            sink.attach(&device, XdpMode::Driver).context("the sink needs native XDP on veth")?;
            program(&mut ebpf, "bench_generate")?.load()?;
            Ok((ebpf, interface))
        })?;
        cable.prefer_sink()?;
        Ok(Self { ebpf, frame: frame(traffic), interface })
    }

    /// Sends for a while, `pace` packets a second or as many as it can. Runs in the world's namespace.
    pub(crate) fn send(mut self, cable: &Cable, length: Duration, pace: Option<f64>) -> Result<(Self, Sent)> {
        cable.world.run(move || {
            pin(0, 0)?;
            let sent = self.send_here(length, pace)?;
            Ok((self, sent))
        })
    }

    fn send_here(&mut self, length: Duration, pace: Option<f64>) -> Result<Sent> {
        let (frame, context) = (self.frame.clone(), context(&self.frame, self.interface));
        let generate = program(&mut self.ebpf, "bench_generate")?;
        let (start, mut offered) = (Instant::now(), 0);
        while start.elapsed() < length {
            let repeat = match pace {
                None => UNPACED,
                Some(rate) => {
                    let due = (start.elapsed().as_secs_f64() * rate) as u64;
                    let behind = due.saturating_sub(offered);
                    if behind < u64::from(BATCH) {
                        std::thread::sleep(Duration::from_micros(20));
                        continue;
                    }
                    // What a pause of this thread has missed is not made up for by a flood.
                    u32::try_from(behind).unwrap_or(u32::MAX).min(4 * BATCH)
                }
            };
            generate.test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })?;
            offered += u64::from(repeat);
        }
        Ok(Sent { offered, elapsed: start.elapsed() })
    }

    pub(crate) fn sunk(&self) -> Result<Sunk> {
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(self.ebpf.map("SUNK").context("SUNK")?)?;
        let sum = |index| -> Result<u64> { Ok(map.get(&index, 0)?.iter().sum()) };
        Ok(Sunk { packets: sum(0)?, bytes: sum(1)?, others: sum(2)? })
    }

    /// The head of the first packet that came out of the relay.
    pub(crate) fn sample(&self) -> Result<Vec<u8>> {
        let map: Array<&MapData, [u64; HEAD_LEN / 8]> =
            Array::try_from(self.ebpf.map("SAMPLE").context("SAMPLE")?)?;
        Ok(map.get(&0, 0)?.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }
}

/// Packets for each binding before anything is measured: then 98 in 100 have carried one.
const WARM_UP: u32 = 4;

/// Runs `called` on fresh packets and returns what one run costs, the making of the packet and the call taken
/// off. Before that all bindings come into use.
pub(crate) fn program_cost(
    cable: &Cable,
    objects: &Path,
    traffic: Traffic,
    called: ProgramFd,
) -> Result<Duration> {
    const RUNS: u32 = 1_000_000;
    let mut ebpf = load(objects, Traffic { train: 1, ..traffic })?;
    let device = cable.relay_device.clone();
    cable.relay.run(move || {
        pin(0, crate::cable::relay_cpu())?;
        let interface = index(&device)?;
        let nothing = program(&mut ebpf, "bench_nothing")?;
        nothing.load()?;
        let nothing = nothing.fd()?.try_clone()?;
        program(&mut ebpf, "bench_call")?.load()?;
        let mut slots = ProgramArray::try_from(ebpf.take_map("CALLED").context("CALLED")?)?;
        let frame = frame(traffic);
        let context = context(&frame, interface);
        let mut cost = |slot: &ProgramFd, runs| -> Result<Duration> {
            slots.set(0, slot, 0)?;
            let result = program(&mut ebpf, "bench_call")?.test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: runs,
                ..TestRunOptions::new()
            })?;
            ensure!(result.return_value == 3, "the program said {}, not XDP_TX", result.return_value);
            Ok(result.duration)
        };
        cost(&called, (traffic.bindings * WARM_UP).max(RUNS / 10))?;
        let (with, without) = (cost(&called, RUNS)?, cost(&nothing, RUNS)?);
        Ok(with.saturating_sub(without))
    })
}

pub(crate) fn load(objects: &Path, traffic: Traffic) -> Result<Ebpf> {
    let object = objects.join("bench");
    let bytes = std::fs::read(&object)
        .with_context(|| format!("cannot read {}: run `cargo xtask build`", object.display()))?;
    let mut ebpf = EbpfLoader::new()
        .override_global("BINDINGS", &traffic.bindings, true)
        .override_global("TRAIN", &traffic.train, true)
        .override_global("TURN", &u8::from(traffic.turn), true)
        .override_global("FORWARD_TO", &FIRST_RECEIVER.octets(), true)
        .override_global("FORWARD_PORT", &PORT.to_be_bytes(), true)
        .load(&bytes)?;
    let mut map: Array<_, [u8; size_of::<Template>()]> =
        Array::try_from(ebpf.map_mut("TEMPLATE").context("TEMPLATE")?)?;
    map.set(0, template(&frame(traffic)), 0)?;
    Ok(ebpf)
}

pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// `struct xdp_md`: the frame, as if it had come in by the interface.
fn context(frame: &[u8], interface: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// A packet of the first binding, without sender, connection ID and checksums.
fn frame(traffic: Traffic) -> Vec<u8> {
    let channel = if traffic.turn { CHANNEL_HEADER_LEN } else { 0 };
    let payload = channel + usize::from(traffic.payload);
    let mut frame = vec![0; PAYLOAD + payload];
    frame[..6].copy_from_slice(&RELAY_MAC);
    frame[6..12].copy_from_slice(&WORLD_MAC);
    frame[12] = 8;
    let length = |header: usize| ((header + payload) as u16).to_be_bytes();
    frame[14..34].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame[16..18].copy_from_slice(&length(28));
    frame[30..34].copy_from_slice(&RELAY.octets());
    frame[34..36].copy_from_slice(&END_PORT.to_be_bytes());
    frame[36..38].copy_from_slice(&traffic.port.to_be_bytes());
    frame[38..40].copy_from_slice(&length(8));
    if traffic.turn {
        frame[42..44].copy_from_slice(&crate::coturn::CHANNEL.to_be_bytes());
        frame[44..46].copy_from_slice(&traffic.payload.to_be_bytes());
    }
    // A short header, its key phase and packet number hidden.
    frame[PAYLOAD + channel] = 0x43;
    frame
}

fn template(frame: &[u8]) -> [u8; size_of::<Template>()] {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
    };
    let ip_sum = words(&frame[14..34]);
    // Pseudo header: both addresses, protocol, UDP length.
    let udp_sum = words(&frame[26..34]) + 17 + words(&frame[38..40]) + words(&frame[34..]);
    let mut template = [0; size_of::<Template>()];
    template[..HEAD_LEN].copy_from_slice(&frame[..HEAD_LEN]);
    template[HEAD_LEN..][..4].copy_from_slice(&ip_sum.to_ne_bytes());
    template[HEAD_LEN + 4..][..4].copy_from_slice(&udp_sum.to_ne_bytes());
    template
}

/// The index of an interface of the namespace that this thread is in.
pub(crate) fn index(device: &str) -> Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, device)?)
}
