export * from './agent-channel.module';
