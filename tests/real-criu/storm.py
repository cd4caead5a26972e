# python3 storm.py STATUS PROCESSES MEGABYTES
#
# Each process has maps whose pages it knows: it reads and writes pages in any
# order, drops them, lets maps shrink, grow (and so move) and go, and forks
# children which check what they have inherited, and end, or execute another
# program. The number of its operations goes to STATUS.INDEX, or what is wrong.
# The operations follow from a seed: another one whenever the symbolic link
# STATUS.seed names another. (A file that is open may not change before a restore.)
import mmap, os, random, sys, time

PAGE = 4096
status, processes, megabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if os.getsid(0) != os.getpid():
    os.setsid()
shared = mmap.mmap(-1, 64 * PAGE)
for page in range(64):
    shared[page * PAGE] = page + 1
# All have their size before anybody is told of an operation.
outputs = []
for index in range(processes):
    path = status.rsplit(".", 1)[0] + "." + str(index)
    outputs.append(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.pwrite(outputs[index], b"%12d\n" % 0, 0)
index = 0
for child in range(1, processes):
    if os.fork() == 0:
        index = child
        break
output = outputs[index]
for other in outputs:
    if other != output:
        os.close(other)
seeds = status.rsplit(".", 1)[0] + ".seed"
seed = None
random.seed(index)
serial = 0


def reseed():
    global seed
    try:
        found = os.readlink(seeds)
    except OSError:
        return
    if found != seed:
        seed = found
        random.seed(f"{seed} {index}")


def fail(what):
    os.pwrite(output, ("wrong: " + what + "\n").encode(), 0)
    os._exit(1)


class Map:
    def __init__(self, pages):
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.words = [0] * pages
        for page in range(pages):
            self.write(page)

    def write(self, page):
        global serial
        serial += 1
        self.words[page] = serial
        self.map[page * PAGE + 8 : page * PAGE + 16] = serial.to_bytes(8, "little")

    def check(self, page):
        found = int.from_bytes(self.map[page * PAGE + 8 : page * PAGE + 16], "little")
        if found != self.words[page]:
            fail(f"{found} instead of {self.words[page]} in page {page} of {len(self.words)}")

    def drop(self, first, count):
        self.map.madvise(mmap.MADV_DONTNEED, first * PAGE, count * PAGE)
        self.words[first : first + count] = [0] * count

    def resize(self, pages):
        self.map.resize(pages * PAGE)
        self.words = self.words[:pages] + [0] * (pages - len(self.words))

    def sample(self, count):
        for _ in range(count):
            self.check(random.randrange(len(self.words)))


total = megabytes * 256
maps = [Map(total // 8) for _ in range(8)]


def child_checks():
    for map in random.sample(maps, 3):
        map.sample(20)
        page = random.randrange(len(map.words))
        map.write(page)
        map.check(page)
    if random.randrange(4) == 0:
        # A grandchild.
        if os.fork() == 0:
            random.choice(maps).sample(20)
            os._exit(0)
        if os.wait()[1] != 0:
            os._exit(1)
    if random.randrange(4) == 0:
        os.execv("/bin/true", ["true"])
    os._exit(0)


def operate():
    what = random.randrange(100)
    which = random.randrange(len(maps))
    map = maps[which]
    pages = len(map.words)
    if what < 50:
        map.sample(4)
    elif what < 70:
        page = random.randrange(pages)
        map.write(page)
        map.check(page)
    elif what < 78:
        first = random.randrange(pages)
        count = min(random.randrange(1, 64), pages - first)
        map.drop(first, count)
        map.check(first)
    elif what < 84:
        map.resize(max(64, pages - random.randrange(1, 200)))
        map.sample(4)
    elif what < 92:
        map.resize(min(total // 4, pages + random.randrange(1, 400)))
        map.sample(4)
        map.check(len(map.words) - 1)
    elif what < 94:
        map.map.close()
        maps[which] = Map(max(64, pages // 2))
    elif what < 98:
        if os.fork() == 0:
            child_checks()
        map.sample(4)
        if os.wait()[1] != 0:
            fail("a child's memory")
    else:
        page = random.randrange(64)
        if shared[page * PAGE] != page + 1:
            fail("shared memory")


count = 0
while True:
    reseed()
    operate()
    count += 1
    os.pwrite(output, b"%12d\n" % count, 0)
    if count > 100000:
        time.sleep(0.001)
