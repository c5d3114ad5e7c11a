//! A thousand clones of one parent over real sockets, with clones and servers killed meanwhile.

use crate::guest::{Guest, Policy};
use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, FreeFrames, ServerAddress};
use kaleidoscope_core::wire::client::{Addresses, Client, ClientOptions};
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{ConnectOptions, ListenOptions, Listener};
use kaleidoscope_mock::clone::{MockMemory, MockVm, Program, Threads, Work};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CLONES: u64 = 1000;
const FRAMES: u32 = 2000;

/// Starts a page server for the guest at a path.
fn serve(guest: &Guest, path: &Path) -> Server {
    let listener =
        Listener::bind(&ServerAddress::Unix(path.to_owned()), ListenOptions::default()).unwrap();
    let image = ServedImage::new(Arc::clone(&guest.snapshot), [3; 32]);
    Server::start(vec![image], vec![listener], ServerOptions::default()).unwrap()
}

/// Every clone checks every byte that it reads, while the parent keeps writing. Every tenth clone
/// is killed while it runs. The first server dies halfway and is restarted; the second one stays
/// up.
#[test]
fn a_thousand_clones_over_sockets_lose_their_server_and_go_on() {
    let guest = Guest::new(FRAMES, 11, FreeFrames::Fetch);
    let folder = tempfile::tempdir().unwrap();
    let paths = [folder.path().join("first"), folder.path().join("second")];
    let first = serve(&guest, &paths[0]);
    let second = serve(&guest, &paths[1]);
    let servers: Vec<_> = paths.iter().cloned().map(ServerAddress::Unix).collect();
    let dial = Arc::new(Addresses { servers, options: ConnectOptions::default() });
    let policies = [Policy::Demand, Policy::Aligned, Policy::Colored, Policy::Paper];
    let mut clones = Vec::new();
    for n in 0..CLONES {
        let memory = Arc::new(MockMemory::with_patience(FRAMES, Duration::from_secs(60)).unwrap());
        let options = ClientOptions::default()
            .window(32)
            .buffer(64 << 10)
            .handshake(Duration::from_secs(30))
            .deadline(Duration::from_secs(60));
        let source = Client::connect(Arc::clone(&dial) as _, options).unwrap();
        let parts = EngineParts::new(
            Arc::clone(&guest.locality),
            guest.policy(policies[usize::try_from(n % 4).unwrap()], n),
            Arc::new(source),
            Arc::clone(&memory) as _,
        )
        .queue(Some(Arc::new(memory.queue())));
        let timeout = Duration::from_secs(60);
        let engine = Engine::start(parts, EngineOptions::default().timeout(timeout)).unwrap();
        let engine = Arc::new(engine);
        let program = Program { seed: n, steps: 120, ..Program::default() };
        let vm = MockVm::start(
            memory,
            Arc::clone(&engine) as _,
            Arc::clone(&guest.truth),
            Work::Program(program),
            Threads { vcpus: 1, fault: 1 },
        );
        clones.push((engine, vm.unwrap()));
        if n == CLONES / 2 {
            first.stop();
        }
        if n % 10 == 9 {
            clones.last().unwrap().0.stop();
        }
    }
    drop(first);
    let first = serve(&guest, &paths[0]);
    let mut killed = 0;
    for (n, (engine, vm)) in clones.into_iter().enumerate() {
        let report = vm.join();
        assert_eq!(report.check(), Ok(()), "{n}: {report}\n{engine:?}");
        if n % 10 == 9 {
            killed += u32::from(!report.is_complete());
        } else {
            assert!(report.is_complete(), "{n}: {report}\n{engine:?}");
        }
    }
    assert!(killed > 0, "all clones ended before they could be killed");
    let served = [first.statistics(), second.statistics()];
    assert!(served[1].connections > CLONES / 2 - 1, "{served:?}");
    assert!(guest.writers.written() > 0);
}
