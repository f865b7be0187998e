import { Config } from './config';
import { VARIABLES, type VariableName } from './variables';

const names = Object.keys(VARIABLES) as VariableName[];
/** Of the variables whose default parses, those that give a number. */
const integers = names.filter((name) => typeof VARIABLES[name].parse(undefined) === 'number');
const load = (source: Record<string, string>) => Config.load({ NODE_ENV: 'test', ...source }).env;

const loadSizes = (frame: number, buffered: number) =>
  Config.load({ IM_MAX_FRAME_BYTES: String(frame), IM_MAX_BUFFERED_BYTES: String(buffered) });

describe('variables that must fit together', () => {
  it('a frame that is accepted can be given to its receivers, with what the server adds', () => {
    expect(loadSizes(1_000_000, 1_001_024).env.IM_MAX_FRAME_BYTES).toBe(1_000_000);
    expect(() => loadSizes(1_000_000, 1_001_023)).toThrow(
      'IM_MAX_BUFFERED_BYTES must be IM_MAX_FRAME_BYTES and 1024 more at least',
    );
  });
});

describe('the environment', () => {
  it('takes whole numbers in decimal digits, and nothing else that JavaScript reads as one', () => {
    expect(integers.length).toBeGreaterThan(20);
    for (const name of integers) {
      const good = VARIABLES[name].example;
      expect(load({ [name]: good })[name]).toBe(Number(good));
      for (const bad of [
        `0x${Number(good).toString(16)}`,
        `0b${Number(good).toString(2)}`,
        `${good}e0`,
        `${good}.0`,
        `+${good}`,
        `-${good}`,
        `0${good}`,
        `${good}n`,
        `${good}_0`,
        '٣',
        '99999999999999999999',
      ]) {
        expect(() => load({ [name]: bad })).toThrow(
          new RegExp(`^${name} must be a whole number from \\d+ to \\d+, in decimal digits$`),
        );
      }
    }
  });

  it('refuses a value with a blank at its ends or a control character, whichever variable it is', () => {
    for (const name of names) {
      const good = VARIABLES[name].example || 'http://x.example/0123456789-0123456789-0123456789';
      for (const bad of [` ${good}`, `${good} `, `${good}\n`, `\u00a0${good}`, ' ', ' '.repeat(40)])
        expect(() => load({ [name]: bad })).toThrow(`${name} must not begin or end with a blank`);
      expect(() => load({ [name]: `x\u0007x` })).toThrow(`${name} must not hold a control character`);
    }
  });

  it('takes an empty value for none', () => {
    for (const name of names.filter((one) => one !== 'NODE_ENV'))
      expect(load({ [name]: '' })[name]).toEqual(load({})[name]);
  });

  it('counts what is not blank in a secret', () => {
    for (const name of ['PARLEY_SECRET_KEY', 'PARLEY_ROOT_KEY'] as const) {
      expect(load({ [name]: 'x'.repeat(32) })[name]).toHaveLength(32);
      expect(load({ [name]: `${'x'.repeat(16)} ${'x'.repeat(16)}` })[name]).toHaveLength(33);
      for (const bad of ['x'.repeat(31), `${'x'.repeat(30)}${' '.repeat(10)}x`])
        expect(() => load({ [name]: bad })).toThrow(`${name} must have at least 32 characters`);
    }
  });

  it('takes URLs as they are written, and mends none', () => {
    expect(load({ DATABASE_URL: 'postgres://u:p@h:5432/d' }).DATABASE_URL).toBe('postgres://u:p@h:5432/d');
    for (const bad of [
      'postgres:h/d',
      'postgres:/h/d',
      'mysql://h/d',
      'postgres://h h/d',
      'postgres://h:x/d',
    ])
      expect(() => load({ DATABASE_URL: bad })).toThrow(
        'DATABASE_URL must be a URL that begins with postgres://',
      );
  });

  it('takes addresses and ranges of proxies', () => {
    expect(load({}).TRUST_PROXY).toEqual([]);
    expect(load({ TRUST_PROXY: '10.0.0.7, fd00::/8,192.168.0.0/16' }).TRUST_PROXY).toEqual([
      '10.0.0.7',
      'fd00::/8',
      '192.168.0.0/16',
    ]);
    for (const bad of [
      'true',
      '1',
      'loopback',
      '10.0.0.0/33',
      '10.0.0/8',
      '::/129',
      '10.0.0.1/',
      '10.0.0.1,',
      'fe80::1%eth0',
      '10.0.0.0/8/8',
      '10.0.0.0/1e1',
    ])
      expect(() => load({ TRUST_PROXY: bad })).toThrow('TRUST_PROXY must be IP addresses or ranges');
  });

  it('wants to know who may send a PROXY header', () => {
    expect(load({ PROXY_PROTOCOL: 'on', TRUST_PROXY: '10.0.0.7' }).PROXY_PROTOCOL).toBe('on');
    expect(() => load({ PROXY_PROTOCOL: 'on' })).toThrow(
      'PROXY_PROTOCOL is on, but TRUST_PROXY names nobody',
    );
  });
});
