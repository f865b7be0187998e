import { controlKind, FrameRate } from './frame-rate';
import { Allowance } from './replay-allowances';

const LIMITS = { framesPerSecond: 1, framesBurst: 10 };

describe('what a frame costs', () => {
  it('is one for what is sent, and a part of a budget of their own for acks, pings and reads', () => {
    for (const [kind, most] of [
      [undefined, 10],
      ['ack', 200],
      ['ping', 200],
      ['read', 50],
    ] as const) {
      const rate = new FrameRate(LIMITS);
      const now = Date.now();
      let admitted = 0;
      while (admitted < 1_000 && rate.admit(now, kind)) admitted += 1;
      expect(Math.abs(admitted - most)).toBeLessThanOrEqual(1);
      // The other budget is untouched.
      expect(rate.admit(now, kind === undefined ? 'ack' : undefined)).toBe(true);
    }
  });

  it('is a flood after a hundred refusals, of whatever kind', () => {
    const rate = new FrameRate({ framesPerSecond: 1, framesBurst: 1 });
    const now = Date.now();
    rate.admit(now);
    for (let n = 0; n < 100; n += 1) expect(rate.admit(now)).toBe(false);
    expect(rate.flooding).toBe(false);
    rate.admit(now);
    expect(rate.flooding).toBe(true);
  });

  it.each([
    ['{"type":"ack","conversationId":"1","seq":3}', 'ack'],
    ['{"conversationId":"1","type" : "read","seq":3}', 'read'],
    ['{"type":"ping"}', 'ping'],
    ['{"type":"single","source":1,"target":2,"msg":{"type":"ping"}}', undefined],
    ['{"source":1,"msg":{"type":"ping"},"type":"single"}', 'ping'],
    ['{"type":"single","source":1,"target":2,"msg":{}}', undefined],
    [`{"type":"ping","pad":"${'x'.repeat(512)}"}`, undefined],
  ])('seems to be what a small frame says: %s', (text, kind) => {
    expect(controlKind(Buffer.from(text))).toBe(kind);
  });
});

describe('what may be sent again', () => {
  it('may be overdrawn once, is then made up at its rate, and never saved above its burst', () => {
    const allowance = new Allowance(1_000, 100, 0);
    expect(allowance.waitSeconds(0)).toBe(0);
    allowance.spend(1_500, 0);
    expect(allowance.waitSeconds(0)).toBe(5);
    expect(allowance.waitSeconds(4_000)).toBe(1);
    expect(allowance.waitSeconds(5_010)).toBe(0);
    allowance.spend(1_000, 3_600_000);
    expect(allowance.waitSeconds(3_600_000)).toBe(1);
  });
});
