import { Global, Module } from '@nestjs/common';
import { Config } from '../config';
import { Bus } from './bus';
import { InProcessBus } from './in-process-bus';
import { InProcessStreamLog } from './in-process-stream-log';
import { ReplayAllowances } from './replay-allowances';
import { SocketServer } from './socket-server';
import { SseStreams } from './sse-streams';
import { StreamLog } from './stream-log';

/** Realtime: the Bus and the StreamLog, in this process, and the WebSocket side of the port. Fan-out is a hint; Postgres is the truth. */
@Global()
@Module({
  providers: [
    SocketServer,
    SseStreams,
    ReplayAllowances,
    { provide: Bus, useClass: InProcessBus },
    {
      provide: StreamLog,
      inject: [Config],
      useFactory: ({ env }: Config) =>
        new InProcessStreamLog({
          retentionMs: env.STREAM_LOG_RETENTION_MS,
          maxBytes: env.STREAM_LOG_MAX_BYTES,
        }),
    },
  ],
  exports: [Bus, StreamLog, SocketServer, SseStreams, ReplayAllowances],
})
export class RealtimeModule {}
